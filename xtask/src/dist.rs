//! A release, from the sources to the checksums: docs/install.md tells what is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::command::{must, printed, root};
use crate::{headers, sbom};

/// What can be had is written to `target/dist`; the time of everything in it is that of the commit.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// For which processors; may be given again.
    #[arg(long, value_enum, default_values = ["aarch64", "x86-64"])]
    arch: Vec<Arch>,

    /// Build the same commit again in another folder, and fail unless every byte is the same.
    #[arg(long)]
    check: bool,
}

/// A processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arch {
    /// A Jetson's.
    #[value(name = "aarch64")]
    Aarch64,
    /// A PC's.
    #[value(name = "x86-64")]
    X86,
}

impl Arch {
    /// As Rust and the scripts of cross/ call it.
    fn name(self) -> &'static str {
        match self {
            Self::Aarch64 => "aarch64",
            Self::X86 => "x86_64",
        }
    }

    fn triple(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }
}

/// Beside the program, its pages and completions, in each archive.
const IN_ARCHIVE: [&str; 6] = ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "CHANGELOG.md", "deploy", "docs"];

/// Makes the release, and makes it again if that is asked for.
///
/// # Errors
/// If a tool is missing, a build fails, or two builds differ.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let root = fs::canonicalize(root()).context("finding the sources")?;
    if args.check {
        let changed = printed(git(&root).args(["status", "--porcelain"]))?;
        if !changed.is_empty() {
            bail!("what is not committed cannot be built again elsewhere:\n{changed}");
        }
    }
    let out = release(&root, &args.arch)?;
    print!("{}", fs::read_to_string(out.join("SHA256SUMS")).context("reading the checksums")?);
    if args.check {
        let second = root.join("target/dist-check/second");
        remove(&second)?;
        must(Command::new("git").args(["clone", "--quiet"]).arg(&root).arg(&second))?;
        compare(&out, &release(&second, &args.arch)?)?;
        println!("two builds in two folders: the same bytes");
        remove(&second)?;
    }
    Ok(())
}

/// The release of one folder of sources, in its own `target/dist`.
fn release(root: &Path, archs: &[Arch]) -> anyhow::Result<PathBuf> {
    let time = printed(git(root).args(["log", "-1", "--format=%ct"]))?.trim().to_owned();
    let out = root.join("target/dist");
    remove(&out)?;
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let script = |name: &str| {
        let mut command = Command::new("bash");
        command.current_dir(root).arg(format!("cross/{name}")).env("SOURCE_DATE_EPOCH", &time);
        // Each folder builds for itself, or the second would find the work of the first.
        command.env("CARGO_TARGET_DIR", root.join("target"));
        // What cargo says of this program itself: build scripts would look at it, and build anew.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
                command.env_remove(name);
            }
        }
        command
    };
    let headers = headers::folders()?;
    let manual = root.join("target/manual");
    let mut version = String::new();
    for (at, arch) in archs.iter().enumerate() {
        let mut build = script("build.sh");
        build.args(["--arch", arch.name(), "--no-start", "--features", "tensorrt"]).env("TENSORRT_INCLUDE", &headers);
        if at == 0 {
            // The command line is the same on every processor: so are its pages.
            build.arg("--manual").arg(&manual);
        }
        must(&mut build)?;
        must(script("package.sh").args(["--arch", arch.name()]).arg("--manual").arg(&manual).arg("--out").arg(&out))?;
        if at == 0 {
            let bill = sbom::write(root, &time)?;
            version = bill.version;
            let path = out.join(format!("cellgate-{version}.cdx.json"));
            fs::write(&path, bill.json).with_context(|| format!("writing {}", path.display()))?;
        }
        archive(root, &out, *arch, &version, &time)?;
    }
    let mut names: Vec<_> = names(&out)?;
    names.retain(|name| name != "SHA256SUMS");
    let sums = printed(Command::new("sha256sum").current_dir(&out).args(&names))?;
    fs::write(out.join("SHA256SUMS"), sums).context("writing the checksums")?;
    Ok(out)
}

/// `cellgate-VERSION-TRIPLE.tar.gz`: names in order, one time, one owner, so that the same files give the same bytes.
fn archive(root: &Path, out: &Path, arch: Arch, version: &str, time: &str) -> anyhow::Result<()> {
    let name = format!("cellgate-{version}-{}", arch.triple());
    let stage = root.join("target/dist-stage");
    let folder = stage.join(&name);
    remove(&stage)?;
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let program = root.join("target").join(arch.triple()).join("release/cellgate");
    for source in [program, root.join("target/manual/man"), root.join("target/manual/completions")] {
        must(Command::new("cp").arg("-r").arg(source).arg(&folder))?;
    }
    must(Command::new("cp").current_dir(root).arg("-r").args(IN_ARCHIVE).arg(&folder))?;
    let file = out.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.current_dir(&stage).env("GZIP", "").args(["--create", "--format=gnu", "--sort=name", "--numeric-owner"]);
    tar.args(["--owner=0", "--group=0", "--mode=u+rwX,go+rX,go-w", "--use-compress-program=gzip --no-name --best"]);
    tar.arg(format!("--mtime=@{time}")).arg("--file").arg(&file).arg(&name);
    must(&mut tar)?;
    remove(&stage)
}

/// Whether two releases are the same, byte for byte.
fn compare(first: &Path, second: &Path) -> anyhow::Result<()> {
    let (ours, theirs) = (names(first)?, names(second)?);
    if ours != theirs {
        bail!("the two builds do not have the same files: {ours:?} and {theirs:?}");
    }
    let mut differ = Vec::new();
    for name in ours {
        let read = |folder: &Path| {
            let path = folder.join(&name);
            fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        if read(first)? != read(second)? {
            differ.push(name);
        }
    }
    if !differ.is_empty() {
        let (first, second) = (first.display(), second.display());
        bail!("two builds of one commit differ in {}: compare {first} and {second}", differ.join(", "));
    }
    Ok(())
}

/// The names in a folder, in order.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let list = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let list = list.with_context(|| format!("looking into {}", folder.display()))?;
    let mut names: Vec<_> = list.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn git(root: &Path) -> Command {
    let mut git = Command::new("git");
    git.current_dir(root);
    git
}

/// Removes a folder that may not be there.
fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("cellgate-dist-{name}-{}", std::process::id()));
        remove(&folder).unwrap();
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn a_byte_or_a_file_that_differs_is_named() {
        let first = folder("first", &[("a", "1"), ("b", "2")]);
        let same = folder("same", &[("b", "2"), ("a", "1")]);
        let other = folder("other", &[("a", "1"), ("b", "3")]);
        let less = folder("less", &[("a", "1")]);
        compare(&first, &same).unwrap();
        assert!(compare(&first, &other).unwrap_err().to_string().contains("differ in b:"));
        assert!(compare(&first, &less).unwrap_err().to_string().contains("same files"));
        for each in [first, same, other, less] {
            remove(&each).unwrap();
        }
    }
}
