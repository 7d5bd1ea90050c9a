//! `cellgate data`: bring a data set, or look at one.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use indicatif::ProgressBar;

use super::shared;
use crate::eval::dataset::{Count, Dataset};
use crate::eval::elpv;

/// Bring a public data set, or show what is in a folder of images.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Fetch ELPV: 2,624 real EL images of cells, with labels (87 MB, from PyPI by pip).
    ///
    /// The wheel's SHA-256 is checked; the images go to the data folder and are CC BY-NC-SA 4.0: for tests and
    /// comparisons, not for products. Nothing is done if they are there already.
    ///
    /// Example: cellgate data elpv && cellgate data show ~/.cache/cellgate/elpv
    Elpv(ElpvArgs),
    /// Show a data set: images for each label and type, sizes, masks.
    ///
    /// Example: cellgate data show line3/
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ElpvArgs {
    /// Where data sets are kept [default: $CELLGATE_DATA, else cellgate in the user's cache folder].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Unpack this wheel, downloaded before, in place of asking pip: for machines without network.
    ///
    /// Get it elsewhere by: python3 -m pip download --no-deps elpv-dataset==1.0.0.post1
    #[arg(long, value_name = "FILE")]
    wheel: Option<PathBuf>,
    /// Print one JSON object: folder, images, already.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// A folder of PNG, TIFF, JPEG or PGM images, a text file with one path a line, or one image.
    ///
    /// A labels.csv in the folder gives the labels: header `file,label[,type[,mask]]`, label A, B, C or the
    /// probability of a defect from 0 to 1.
    #[arg(value_name = "DIR|LIST")]
    data: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Does what `cellgate data …` asks for.
///
/// # Errors
/// What could not be fetched or opened, and why.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Elpv(args) => fetch(&args),
        Verb::Show(args) => show(&args),
    }
}

fn fetch(args: &ElpvArgs) -> anyhow::Result<()> {
    let data_dir = elpv::data_dir(args.data_dir.as_deref())?;
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    let fetched = elpv::fetch(&data_dir, args.wheel.as_deref(), |step| match step {
        elpv::Progress::Downloading => bar.set_message("pip downloads elpv-dataset (87 MB)"),
        elpv::Progress::Checking => bar.set_message("checking the SHA-256"),
        elpv::Progress::Unpacking { done, total } => {
            if bar.length() != Some(total as u64) {
                bar.set_style(shared::bar_style());
                bar.set_message("unpacking");
                bar.set_length(total as u64);
            }
            bar.set_position(done as u64);
        }
    });
    bar.finish_and_clear();
    let fetched = fetched.context("bringing the ELPV data set")?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let json = serde_json::json!({
            "folder": fetched.folder.display().to_string(), "images": elpv::IMAGES, "already": fetched.already,
        });
        writeln!(out, "{json}")?;
    } else {
        let state = if fetched.already { "already there and whole" } else { "fetched, SHA-256 right" };
        writeln!(out, "{}: {} images, {state}", fetched.folder.display(), elpv::IMAGES)?;
        writeln!(out, "CC BY-NC-SA 4.0, see LICENSE.md beside them; cite Deitsch et al. 2021.")?;
    }
    Ok(())
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Summary {
    name: String,
    root: String,
    images: usize,
    masks: usize,
    counts: Vec<Count>,
    sizes: Vec<Size>,
    unreadable: Vec<String>,
}

#[derive(serde::Serialize)]
struct Size {
    width: u32,
    height: u32,
    images: usize,
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let set = Dataset::open(&args.data)?;
    let mut sizes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    let mut unreadable = Vec::new();
    let bar = shared::bar(set.items.len() as u64, "reading");
    for item in &set.items {
        let reader = image::ImageReader::open(&item.path).and_then(image::ImageReader::with_guessed_format);
        match reader.map_err(image::ImageError::from).and_then(image::ImageReader::into_dimensions) {
            Ok(size) => *sizes.entry(size).or_default() += 1,
            Err(error) => unreadable.push(format!("{}: {error}", item.id)),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = Summary {
        name: set.name.clone(),
        root: set.root.display().to_string(),
        images: set.items.len(),
        masks: set.items.iter().filter(|item| item.mask.is_some()).count(),
        counts: set.counts(),
        sizes: sizes.into_iter().map(|((width, height), images)| Size { width, height, images }).collect(),
        unreadable,
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&summary)?)?;
    } else {
        out.write_all(text(&summary).as_bytes())?;
    }
    Ok(())
}

/// Labels down, types across.
fn text(summary: &Summary) -> String {
    use std::fmt::Write;
    let mut text = format!("{} ({}): {} images", summary.name, summary.root, summary.images);
    if summary.masks > 0 {
        let _ = write!(text, ", {} with a mask", summary.masks);
    }
    text.push_str("\n\n");
    let mut labels: Vec<&str> = summary.counts.iter().map(|count| count.label.as_str()).collect();
    labels.dedup();
    let mut kinds: Vec<&str> = summary.counts.iter().map(|count| count.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let images = |label: Option<&str>, kind: Option<&str>| -> usize {
        let counted = summary.counts.iter().filter(|count| {
            label.is_none_or(|label| count.label == label) && kind.is_none_or(|kind| count.kind == kind)
        });
        counted.map(|count| count.images).sum()
    };
    let width = kinds.iter().map(|kind| kind.chars().count()).max().unwrap_or(0).max(7) + 2;
    let mut line = |head: &str, cells: Vec<String>| {
        let _ = write!(text, "{head:>10}");
        for cell in &cells {
            let _ = write!(text, "{cell:>width$}");
        }
        text.push('\n');
    };
    let all = |label| {
        let cells = kinds.iter().map(|kind| images(label, Some(kind)).to_string());
        cells.chain([images(label, None).to_string()]).collect()
    };
    let heads = kinds.iter().map(|kind| if kind.is_empty() { "-".to_string() } else { (*kind).to_string() });
    line("label", heads.chain(["all".to_string()]).collect());
    labels.iter().for_each(|label| line(label, all(Some(label))));
    line("all", all(None));
    text.push('\n');
    for size in &summary.sizes {
        let _ = writeln!(text, "{:>10} images of {}×{}", size.images, size.width, size.height);
    }
    for problem in summary.unreadable.iter().take(10) {
        let _ = writeln!(text, "unreadable: {problem}");
    }
    if summary.unreadable.len() > 10 {
        let _ = writeln!(text, "unreadable: {} more", summary.unreadable.len() - 10);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_adds_up() {
        let count = |label: &str, kind: &str, images| Count { label: label.into(), kind: kind.into(), images };
        let summary = Summary {
            name: "set".into(),
            root: "x/set".into(),
            images: 10,
            masks: 0,
            counts: vec![count("0", "mono", 5), count("0", "poly", 3), count("1", "mono", 2)],
            sizes: vec![Size { width: 300, height: 300, images: 10 }],
            unreadable: Vec::new(),
        };
        let text = text(&summary);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[2], ["label", "mono", "poly", "all"]);
        assert_eq!(rows[3], ["0", "5", "3", "8"]);
        assert_eq!(rows[4], ["1", "2", "0", "2"]);
        assert_eq!(rows[5], ["all", "7", "3", "10"]);
        assert!(text.contains("10 images of 300×300"));
    }
}
