//! `cellgate synth`: writes a data set of synthetic cells, or one contact sheet of them.

mod sheet;
mod write;

use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use super::shared;
use crate::synth::{DefectKind, Generator, Selection, SynthConfig};
use crate::verdict::Class;
pub(super) use write::data_set;

/// Draw synthetic electroluminescence images of solar cells, with the truth about every pixel.
///
/// Writes PNG images, masks/ (one PNG for each cell with defects: 0 for none, else the kind's code), labels.csv
/// (file,label,type,mask) and synth.json (the settings). The same seed gives the same images on every machine. Run the
/// same command again after an interruption to go on where it stopped, or with a larger --count to add cells.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate synth -o cells --count 2000                    a batch as a line makes it: 96.3 % A, 2.9 % B, 0.8 % C
  cellgate synth -o test --count 300 --seed 2 --balanced  as many of each class
  cellgate synth -o cracks --count 50 --defect crack-cross
  cellgate synth --preview sheet.png --class C            look at some first")]
pub struct Args {
    /// Folder to write to; made if it isn't there.
    #[arg(short, long, value_name = "DIR", required_unless_present = "preview")]
    out: Option<PathBuf>,

    /// Cells to draw [default: 100, or 12 in a preview].
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    count: Option<u64>,

    /// Number of the first cell: other numbers are other cells of the same line.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "preview",
        value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    first: u64,

    /// Which line: another seed gives other cells, another line signature and another camera.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Bits of a pixel: 8 or 16.
    #[arg(long, default_value = "8")]
    bits: Bits,

    /// Pixels on each side of an image, 64 to 2048.
    #[arg(long, default_value_t = 720, value_name = "PIXELS")]
    size: usize,

    /// A, B and C in turn instead of the mix of a real line.
    #[arg(long, group = "mix")]
    balanced: bool,

    /// Shares of the classes A, B and C, such as 90,8,2 [default: 96.3,2.9,0.8].
    #[arg(long, group = "mix", value_name = "A,B,C", value_parser = shares)]
    proportions: Option<Shares>,

    /// Only cells of this class.
    #[arg(long, group = "mix", value_name = "CLASS")]
    class: Option<ClassName>,

    /// Only cells with this defect: dark-spot, grey-dots, black-dots, crack-straight, crack-cross, crack-branching,
    /// scratch, finger-interruption, dark-edge or dimmed.
    #[arg(long, group = "mix", value_name = "KIND")]
    defect: Option<DefectKind>,

    /// Scale of the random shift, rotation and skew: 0 for none, at most 2.
    #[arg(long, default_value_t = 1.0, value_name = "SCALE")]
    jitter: f64,

    /// Write no masks.
    #[arg(long)]
    no_masks: bool,

    /// Write each cell's number into its image, as a bar code in the dark margin.
    #[arg(long)]
    with_id: bool,

    /// Write one contact sheet instead, each defect outlined in the colour of its kind.
    #[arg(long, value_name = "FILE.png", conflicts_with = "out")]
    preview: Option<PathBuf>,

    /// Threads to draw on [default: one a core].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Bits {
    #[value(name = "8")]
    Eight,
    #[value(name = "16")]
    Sixteen,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ClassName {
    #[value(name = "A")]
    A,
    #[value(name = "B")]
    B,
    #[value(name = "C")]
    C,
}

/// Shares of the classes A, B and C.
#[derive(Clone, Copy, Debug)]
struct Shares([f64; 3]);

fn shares(text: &str) -> Result<Shares, String> {
    let numbers: Option<Vec<f64>> = text.split(',').map(|part| part.trim().parse().ok()).collect();
    let three = numbers.and_then(|numbers| numbers.try_into().ok());
    three.map(Shares).ok_or_else(|| "give three numbers with commas between them, such as 90,8,2".into())
}

impl Args {
    fn config(&self) -> SynthConfig {
        let mut config = SynthConfig {
            size: self.size,
            white: match self.bits {
                Bits::Eight => 255,
                Bits::Sixteen => 65535,
            },
            pose_jitter: self.jitter,
            with_id: self.with_id,
            ..SynthConfig::default()
        };
        if let Some(Shares(proportions)) = self.proportions {
            config.proportions = proportions;
        }
        config.selection = match (self.balanced, self.class, self.defect) {
            (true, ..) => Selection::Balanced,
            (_, Some(ClassName::A), _) => Selection::Only(Class::A),
            (_, Some(ClassName::B), _) => Selection::Only(Class::B),
            (_, Some(ClassName::C), _) => Selection::Only(Class::C),
            (_, _, Some(kind)) => Selection::Defect(kind),
            _ => Selection::Natural,
        };
        config
    }
}

/// Does what `cellgate synth` was asked for.
///
/// # Errors
/// Settings out of range, a folder of other settings, or a file that cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let generator = Generator::new(args.config(), args.seed).context("setting up the generator")?;
    match (&args.preview, &args.out) {
        (Some(file), _) => sheet::preview(&generator, args.count.unwrap_or(12), file),
        (None, Some(dir)) => {
            let threads = shared::threads(args.threads);
            let interrupted = shared::interrupt()?;
            let numbers = args.first..args.first + args.count.unwrap_or(100);
            write::data_set(&generator, numbers, !args.no_masks, threads, dir, &interrupted)
        }
        (None, None) => anyhow::bail!("where to? give -o DIR or --preview FILE.png"),
    }
}
