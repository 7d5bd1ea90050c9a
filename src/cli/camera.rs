//! `cellgate camera`: which cameras there are, what they see, and the calibration of their sensor.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;

use super::shared;
use crate::camera::config::{self, CameraConfig, Kind};
use crate::camera::pixels::PixelFormat;
use crate::camera::synthetic::Scene;
use crate::camera::{Camera, CameraError, Shot};
use crate::preprocess::sensor::{Calibration, Correction, Level, Recorder};

/// List cameras, take a picture, calibrate the sensor.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say which cameras there are, and in which formats they can deliver.
    List,
    Snap(Snap),
    Calibrate(Calibrate),
}

/// Take the next frame and write it as PNG.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  cellgate camera snap --device /dev/video0 --width 1280 --height 1024 --format y12 -o now.png
  cellgate camera snap --synthetic --pattern 1 --calibration sensor.cgs -o corrected.png")]
struct Snap {
    #[command(flatten)]
    camera: Which,

    /// Correct the frame by this calibration first.
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,

    /// Seconds to wait for a frame.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    wait: f64,

    /// The PNG to write.
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
}

/// Record the sensor's dark frame and bad pixels, then its gains.
#[derive(Debug, clap::Args)]
struct Calibrate {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Record frames of the covered sensor: dark signal, hot and unstable pixels. Begins a new calibration.
    #[command(
        after_help = "Cover the lens and switch the cell's current off. Use the exposure and gain that the station uses.

Example, to try it without a camera:
  cellgate camera calibrate dark sensor.cgs --synthetic --pattern 1
  cellgate camera calibrate flat sensor.cgs --synthetic --pattern 1"
    )]
    Dark(Record),
    /// Record frames of an evenly lit field: gains and pixels that don't answer to light. Completes a calibration.
    #[command(
        after_help = "Light the whole field evenly, to about half of full scale, by light that does not flicker. \
                           Leave exposure and gain as they were for the dark frames."
    )]
    Flat(Record),
}

#[derive(Debug, clap::Args)]
struct Record {
    /// The calibration: written by `dark`, completed by `flat`.
    #[arg(value_name = "FILE.cgs")]
    file: PathBuf,

    #[command(flatten)]
    camera: Which,

    /// Frames to record.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=4096))]
    frames: u32,

    /// Seconds to wait for each frame.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = seconds)]
    wait: f64,
}

/// Which camera.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Camera")]
struct Which {
    /// A V4L2 device [default: /dev/video0].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "synthetic"])]
    device: Option<PathBuf>,

    /// The images of this folder, in order of their names.
    #[arg(long, value_name = "FOLDER", conflicts_with = "synthetic")]
    replay: Option<PathBuf>,

    /// Cells that are drawn; to be calibrated, a covered or an evenly lit sensor.
    #[arg(long)]
    synthetic: bool,

    /// Pixels in a row, of a device.
    #[arg(long, default_value_t = CameraConfig::default().width, value_name = "PIXELS")]
    width: usize,

    /// Rows, of a device.
    #[arg(long, default_value_t = CameraConfig::default().height, value_name = "PIXELS")]
    height: usize,

    /// Pixel format, of a device: grey, y10, y12, y14 or y16.
    #[arg(long, default_value = "grey", value_name = "FORMAT", value_parser = format)]
    format: PixelFormat,

    /// Bits that the pixel's lie above its word's lowest one, for drivers that don't align right (Tegra).
    #[arg(long, value_name = "BITS")]
    shift: Option<u32>,

    /// The pixel's bits after the shift, such as 0xfff.
    #[arg(long, value_name = "MASK", value_parser = mask)]
    mask: Option<u16>,

    /// A control of the device and its value, such as exposure_time_absolute=500; `v4l2-ctl -l` lists them. May be given
    /// several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = control)]
    control: Vec<(String, i64)>,

    /// Frames a second to ask of the device.
    #[arg(long, value_name = "RATE")]
    rate: Option<f64>,

    /// Pixels a side of synthetic frames.
    #[arg(long, default_value_t = CameraConfig::default().size, value_name = "PIXELS")]
    size: usize,

    /// Full scale of synthetic frames.
    #[arg(long, default_value_t = CameraConfig::default().white, value_name = "VALUE")]
    white: u16,

    /// Seed of synthetic frames.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    /// Scale of the faults of the synthetic sensor: 0 is a perfect one, 1 a middling InGaAs sensor.
    #[arg(long, default_value_t = 0.0, value_name = "SCALE")]
    pattern: f32,
}

fn format(text: &str) -> Result<PixelFormat, String> {
    let known = PixelFormat::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(text));
    known.ok_or_else(|| "one of grey, y10, y12, y14, y16 is needed".into())
}

fn mask(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number up to 0xffff is needed".into())
}

fn control(text: &str) -> Result<(String, i64), String> {
    let pair =
        text.split_once('=').and_then(|(name, value)| Some((name.trim().to_owned(), value.trim().parse().ok()?)));
    pair.filter(|(name, _)| !name.is_empty()).ok_or_else(|| "NAME=VALUE with a whole number is needed".into())
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=86_400.0).contains(value));
    value.ok_or_else(|| "0 to 86400 seconds are possible".into())
}

impl Which {
    fn config(&self, scene: Scene) -> CameraConfig {
        let kind = match (self.synthetic, &self.replay) {
            (true, _) => Kind::Synthetic,
            (false, Some(_)) => Kind::Replay,
            (false, None) => Kind::V4l,
        };
        let default = CameraConfig::default();
        CameraConfig {
            kind,
            device: self.device.clone().unwrap_or(default.device),
            width: self.width,
            height: self.height,
            format: self.format,
            shift: self.shift,
            mask: self.mask,
            rate: self.rate,
            controls: self.control.iter().cloned().collect(),
            folder: self.replay.clone().unwrap_or(default.folder),
            repeat: false,
            period_ms: 0,
            size: self.size,
            white: self.white,
            seed: self.seed,
            pattern: self.pattern,
            scene,
            ..CameraConfig::default()
        }
    }
}

/// Runs `cellgate camera`.
///
/// # Errors
/// The camera gives no frame, the frames calibrate nothing, or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.verb {
        Verb::List => list(),
        Verb::Snap(args) => snap(&args),
        Verb::Calibrate(Calibrate { what: What::Dark(args) }) => dark(&args),
        Verb::Calibrate(Calibrate { what: What::Flat(args) }) => flat(&args),
    }
}

#[cfg(target_os = "linux")]
fn list() -> anyhow::Result<()> {
    let found = crate::camera::v4l::list();
    if found.is_empty() {
        println!("no camera: there is no /dev/video*; is it plugged in, and its driver loaded (dmesg)?");
    }
    for device in found {
        let path = device.path.display();
        match device.about {
            Ok((identity, formats)) => {
                let formats = match (identity.captures && identity.streams, formats.join(", ")) {
                    (false, _) => "does not capture video by the single-planar interface".into(),
                    (true, formats) if formats.is_empty() => "no formats".into(),
                    (true, formats) => formats,
                };
                println!("{path}  {} ({} at {}): {formats}", identity.card, identity.driver, identity.bus);
            }
            Err(why) => println!("{path}  {why}"),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn list() -> anyhow::Result<()> {
    bail!("cameras are listed on Linux only; --replay and --synthetic work here")
}

/// The next frame that is not damaged; none at the end of a replay.
fn next(camera: &mut dyn Camera, shot: &mut Shot, wait: f64) -> anyhow::Result<bool> {
    // Some drivers mark the first frames after a start.
    for _ in 0..100 {
        match camera.next(shot, Duration::from_secs_f64(wait)) {
            Ok(()) => return Ok(true),
            Err(CameraError::End) => return Ok(false),
            Err(error @ CameraError::Damaged { .. }) => eprintln!("skipping: {error}"),
            Err(error @ CameraError::Nothing(_)) => {
                return Err(error)
                    .context(format!("waiting for {}; if it is triggered, give it a trigger", camera.describe()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("all of 100 frames of {} were damaged", camera.describe())
}

fn shot_for(camera: &dyn Camera) -> Shot {
    let format = camera.format();
    Shot::new(format.width, format.height, format.white)
}

fn snap(args: &Snap) -> anyhow::Result<()> {
    shared::check_writable(&args.out)?;
    let config = args.camera.config(Scene::Cell);
    let mut camera = config::open(&config)?;
    let correction = match &args.calibration {
        Some(path) => Some(Correction::load(path, camera.format(), &config.exposure())?),
        None => None,
    };
    let mut shot = shot_for(&*camera);
    if !next(&mut *camera, &mut shot, args.wait)? {
        bail!("{} has no frame that can be read", camera.describe());
    }
    if let Some(correction) = &correction {
        correction.apply(&mut shot.frame)?;
    }
    shot.frame.save_png(&args.out)?;
    let (pixels, white) = (shot.frame.pixels(), shot.frame.white());
    let count = pixels.len().max(1) as f64;
    let mean = pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / count / f64::from(white);
    let full = pixels.iter().filter(|&&p| p >= white).count() as f64 / count;
    println!("{}: frame {} of {}", args.out.display(), shot.sequence, camera.describe());
    println!("mean {mean:.4} of full scale, {:.2} % of the pixels at full scale", 100.0 * full);
    Ok(())
}

/// Records frames with a progress bar; and says which camera they are of.
fn record(args: &Record, config: &CameraConfig) -> anyhow::Result<(Recorder, String)> {
    shared::check_writable(&args.file)?;
    let interrupted = shared::interrupt()?;
    let mut camera = config::open(config)?;
    let mut recorder = Recorder::new(camera.format());
    let mut shot = shot_for(&*camera);
    let bar = shared::bar(args.frames.into(), "recording");
    while recorder.count() < args.frames {
        if shared::go_on(&interrupted).is_break() {
            bail!("interrupted after {} frames; {} is as it was", recorder.count(), args.file.display());
        }
        if !next(&mut *camera, &mut shot, args.wait)? {
            break;
        }
        recorder.add(&shot.frame)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((recorder, camera.describe()))
}

fn dark(args: &Record) -> anyhow::Result<()> {
    let config = args.camera.config(Scene::Dark);
    let (frames, camera) = record(args, &config)?;
    let calibration = Calibration::from_dark(&frames, &camera, &config.exposure())?;
    calibration.write(&args.file)?;
    println!("{}: {} dark frames of {camera}", args.file.display(), frames.count());
    dark_level(calibration.dark_level());
    bad(&calibration);
    println!("now light the field evenly and run `cellgate camera calibrate flat {}`", args.file.display());
    Ok(())
}

fn flat(args: &Record) -> anyhow::Result<()> {
    let before =
        Calibration::read(&args.file).context("flat frames complete a calibration: record the dark frames first")?;
    let config = args.camera.config(Scene::Flat);
    if before.exposure() != config.exposure() {
        bail!(
            "the dark frames of {} were made with the controls `{}`, these would be with `{}`: give the same",
            args.file.display(),
            before.exposure(),
            config.exposure()
        );
    }
    let (frames, camera) = record(args, &config)?;
    let calibration = before.with_flat(&frames)?;
    // What cannot correct must not be written.
    Correction::new(&calibration, calibration.format())?;
    calibration.write(&args.file)?;
    println!("{}: {} flat frames of {camera}", args.file.display(), frames.count());
    dark_level(calibration.dark_level());
    if let Some(flat) = calibration.flat_level() {
        println!("flat level     {:.4} of full scale above the dark, noise {:.4}", flat.mean, flat.noise);
        println!(
            "flat spread    {:.2} % from pixel to pixel, brightest region {:.2} times the darkest",
            100.0 * flat.pattern,
            flat.falloff
        );
    }
    bad(&calibration);
    Ok(())
}

fn dark_level(dark: Level) {
    println!(
        "dark level     {:.4} of full scale, noise {:.4}, {:.4} from pixel to pixel",
        dark.mean, dark.noise, dark.pattern
    );
}

fn bad(calibration: &Calibration) {
    let (found, format) = (calibration.found(), calibration.format());
    let share = 100.0 * f64::from(found.all()) / (format.width * format.height).max(1) as f64;
    println!(
        "bad pixels     {} ({share:.3} %): {} hot, {} unstable, {} that do not answer to light as the others",
        found.all(),
        found.hot,
        found.unstable,
        found.dead
    );
}
