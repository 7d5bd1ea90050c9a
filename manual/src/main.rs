//! Writes the manual pages and the shells' completions of the command line, for packages:
//! `cargo run --release --package cellgate-manual -- DIR`. Kept out of the program, which has no use for them at a station.

use std::path::Path;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;

fn main() -> anyhow::Result<()> {
    let folder = std::env::args_os().nth(1).context("naming the folder: cellgate-manual DIR")?;
    let folder = Path::new(&folder);
    let command = cellgate::cli::Cli::command();
    pages(&command, &folder.join("man"))?;
    completions(command, &folder.join("completions"))
}

/// One page for the program and one for each verb (`cellgate-run.1`) and its own verbs (`cellgate-update-install.1`).
fn pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    new_folder(folder)?;
    let command = command.clone().disable_help_subcommand(true);
    clap_mangen::generate_to(command, folder).with_context(|| format!("writing manual pages to {}", folder.display()))
}

/// For bash, zsh and fish.
fn completions(mut command: Command, folder: &Path) -> anyhow::Result<()> {
    new_folder(folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "cellgate", folder)
            .with_context(|| format!("writing the completion of {shell} to {}", folder.display()))?;
    }
    Ok(())
}

/// Without what an older command line had left there.
fn new_folder(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))
}
