//! `cellgate backbone`: weights in, weights out, and what they are.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;

use crate::backbone::weights::safetensors::{self, About};
use crate::backbone::weights::{Loaded, Precision, architecture, write_file};
use crate::backbone::{INPUT_MEAN, INPUT_STD, ResNet18, onnx};

/// Import, show and export the weights of the feature extractor.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Import(Import),
    Show(Show),
    ExportOnnx(ExportOnnx),
}

/// Turn a ResNet18 into cellgate's own weights file.
///
/// Reads what torch.save wrote of a torchvision ResNet18's state dict (.pth), a .safetensors with the same names, or an
/// ONNX of it; the bytes decide, not the file's name. Batch norm and the three colour channels are folded into the
/// convolutions, the classification head is dropped.
///
/// Example: cellgate backbone import resnet18-f37072fd.pth -o imagenet.safetensors
#[derive(Debug, clap::Args)]
struct Import {
    /// The weights to read.
    file: PathBuf,
    /// Where to write; the folder must exist.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Write 32-bit weights instead of 16-bit ones, twice the size. Biases have 32 bits in either.
    #[arg(long)]
    fp32: bool,
    /// A short name, kept in the file [default: the name that the file has, or the input's file name].
    #[arg(long)]
    name: Option<String>,
    /// Where the weights come from, kept in the file.
    #[arg(long, value_name = "TEXT")]
    provenance: Option<String>,
}

/// Say which network this is: identity, tensors, parameters, multiply-adds, provenance.
///
/// Example: cellgate backbone show imagenet.safetensors --json
#[derive(Debug, clap::Args)]
struct Show {
    /// The weights file, of any format that import reads [default: the embedded backbone].
    file: Option<PathBuf>,
    /// The image side for which multiply-adds are counted.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(32..=4096))]
    size: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Write the network as ONNX, for other runtimes.
///
/// Input `image` [1,1,S,S], outputs `stage1` to `stage4` [1,C,S/stride,S/stride]; opset 17, IR version 8. With --fp16
/// every tensor is FLOAT16, input and outputs too.
///
/// Example: cellgate backbone export-onnx --size 256 --fp16 -o backbone.onnx
#[derive(Debug, clap::Args)]
struct ExportOnnx {
    /// The weights file, of any format that import reads [default: the embedded backbone].
    #[arg(long, value_name = "FILE")]
    backbone: Option<PathBuf>,
    /// The image side: a multiple of 32 from 64 to 1024.
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Write FLOAT16 tensors instead of FLOAT.
    #[arg(long)]
    fp16: bool,
    /// Where to write; the folder must exist.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

/// Runs `cellgate backbone`.
///
/// # Errors
/// The weights cannot be read or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::Import(args) => import(args),
        Verb::Show(args) => show(&args),
        Verb::ExportOnnx(args) => export_onnx(&args),
    }
}

fn read(file: Option<&Path>) -> anyhow::Result<Loaded> {
    Ok(match file {
        Some(path) => Loaded::read(path)?,
        None => Loaded::embedded().context("reading the embedded backbone")?,
    })
}

fn import(args: Import) -> anyhow::Result<()> {
    let loaded = read(Some(&args.file))?;
    let precision = if args.fp32 { Precision::F32 } else { Precision::F16 };
    let stem = || args.file.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let given = |own: String| if own.is_empty() { stem() } else { own };
    let about = About {
        name: args.name.unwrap_or_else(|| given(loaded.about.name)),
        provenance: args.provenance.unwrap_or(loaded.about.provenance),
    };
    let (bytes, written) = safetensors::write(&loaded.network, precision, &about)?;
    write_file(&args.output, &bytes)?;
    println!("{}: {} bytes, identity {}", args.output.display(), bytes.len(), written.identity());
    Ok(())
}

fn show(args: &Show) -> anyhow::Result<()> {
    let loaded = read(args.file.as_deref())?;
    let network = &loaded.network;
    let size = args.size as usize;
    if args.json {
        let tensors: Vec<_> = architecture()
            .iter()
            .map(|s| {
                serde_json::json!({
                    "name": s.name, "shape": s.weight_shape(), "stride": s.stride, "multiply_adds": s.multiply_adds(size),
                })
            })
            .collect();
        let value = serde_json::json!({
            "identity": network.identity().to_string(),
            "name": loaded.about.name,
            "provenance": loaded.about.provenance,
            "origin": loaded.origin,
            "precision": loaded.precision,
            "input": { "channels": 1, "mean": INPUT_MEAN, "std": INPUT_STD },
            "parameters": network.parameters(),
            "size": size,
            "multiply_adds": ResNet18::multiply_adds(size),
            "convolutions": tensors,
        });
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    println!("identity       {}", network.identity());
    if !loaded.about.name.is_empty() {
        println!("name           {}", loaded.about.name);
    }
    if !loaded.about.provenance.is_empty() {
        println!("provenance     {}", loaded.about.provenance);
    }
    println!("input          1 channel, (x/white − {INPUT_MEAN})/{INPUT_STD}");
    println!("parameters     {}", network.parameters());
    println!("multiply-adds  {:.3} G at {size}×{size}", ResNet18::multiply_adds(size) as f64 / 1e9);
    println!();
    println!("{:<22} {:>16} {:>7} {:>14}", "convolution", "shape", "stride", "multiply-adds");
    for shape in architecture() {
        let [o, i, k, _] = shape.weight_shape();
        let dims = format!("{o}×{i}×{k}×{k}");
        println!("{:<22} {dims:>16} {:>7} {:>14}", shape.name, shape.stride, shape.multiply_adds(size));
    }
    Ok(())
}

fn export_onnx(args: &ExportOnnx) -> anyhow::Result<()> {
    let network = read(args.backbone.as_deref())?.network;
    let precision = if args.fp16 { Precision::F16 } else { Precision::F32 };
    let bytes = onnx::export_onnx(&network, args.size, precision)?;
    write_file(&args.output, &bytes)?;
    println!("{}: {} bytes, of backbone {}", args.output.display(), bytes.len(), network.identity());
    Ok(())
}
