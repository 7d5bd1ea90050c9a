//! The CUDA kernels: `kernels/README.md` tells what is checked.

use std::process::Command;

use crate::command::{must, root};

/// Without a choice: recompiles, compares with the committed PTX, and assembles for every card; needs no GPU.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Write the PTX and the table of registers anew instead of comparing.
    #[arg(long, conflicts_with = "device")]
    write: bool,

    /// Run the committed PTX on this machine's NVIDIA card: results against the CPU's, GB/s and the share of the memory's
    /// peak. Needs the driver alone.
    #[arg(long)]
    device: bool,

    /// The driver's library.
    #[arg(long, value_name = "FILE", default_value = "libcuda.so.1", requires = "device")]
    libcuda: String,
}

/// Compiles, checks or runs the kernels.
///
/// # Errors
/// If a tool is missing, or what is checked does not hold.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let root = root();
    if args.device {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(root).env("CELLGATE_LIBCUDA", &args.libcuda);
        let test = ["test", "--package", "cellgate", "--test", "kernels_host"];
        return must(cargo.args(test).args(["--", "--test-threads=1", "--nocapture"]));
    }
    // NVIDIA's compiler and assemblers come as Python packages; they stay in a folder of their own.
    let venv = root.join("target/kernels-venv");
    must(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r"]);
    must(pip.arg(root.join("kernels/requirements.txt")))?;
    let action = if args.write { "compile" } else { "check" };
    must(Command::new(venv.join("bin/python")).arg(root.join("kernels/build.py")).arg(action))
}
