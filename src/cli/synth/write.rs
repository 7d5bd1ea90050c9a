//! A data set on disk: images, masks, labels and the settings that made them.

use std::fs;
use std::io::{Cursor, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, bail, ensure};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};

use crate::cli::shared::{self, save};
use crate::synth::{self, DefectKind, Generator, SynthCell, SynthConfig};
use crate::verdict::Class;

/// What `synth.json` says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    /// Version of the drawing: another one would draw other cells.
    drawing: u32,
    seed: u64,
    #[serde(default)]
    first: u64,
    count: u64,
    masks: bool,
    config: SynthConfig,
}

/// Writes the cells of these numbers and their labels into `dir`, or those of them that are missing there. Every thread stops
/// after its cell once `interrupted` is set.
pub(in crate::cli) fn data_set(
    generator: &Generator,
    numbers: Range<u64>,
    masks: bool,
    threads: usize,
    dir: &Path,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    let (first, count) = (numbers.start, numbers.end - numbers.start);
    let (drawing, seed, config) = (synth::DRAWING, generator.seed(), generator.config().clone());
    let settings = Settings { drawing, seed, first, count, masks, config };
    let folder = if masks { dir.join("masks") } else { dir.to_owned() };
    fs::create_dir_all(folder).with_context(|| format!("making the folder {}", dir.display()))?;
    agree(&settings, dir)?;

    let bar = shared::bar(count, "drawing");
    let (next, failed) = (AtomicU64::new(first), Mutex::new(None));
    let (made, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut labels: Vec<(u64, String)> = Vec::new();
    std::thread::scope(|scope| {
        let work = || {
            let (mut cell, mut png, mut labels) = (SynthCell::default(), Vec::new(), Vec::new());
            while !stop.load(Ordering::Relaxed) && !interrupted.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= numbers.end {
                    break;
                }
                match one(generator, index, masks, dir, &mut cell, &mut png) {
                    Ok((label, new)) => {
                        labels.push((index, label));
                        made.fetch_add(u64::from(new), Ordering::Relaxed);
                        bar.inc(1);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        if let Ok(mut failed) = failed.lock() {
                            failed.get_or_insert(error);
                        }
                    }
                }
            }
            labels
        };
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        labels = work();
        for other in others {
            match other.join() {
                Ok(theirs) => labels.extend(theirs),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    bar.finish_and_clear();
    if let Some(error) = failed.into_inner().unwrap_or_default() {
        return Err(error);
    }
    if (labels.len() as u64) < count {
        bail!("interrupted after {} of {count} cells: run the same command again to go on", labels.len());
    }
    labels.sort_unstable_by_key(|(index, _)| *index);
    let mut text = String::from("file,label,type,mask\n");
    text.extend(labels.iter().map(|(_, line)| line.as_str()));
    save(&dir.join("labels.csv"), text.as_bytes())?;
    let made = made.into_inner();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{count} cells in {} ({made} drawn, {} were there)", dir.display(), count - made)?;
    Ok(())
}

/// Refuses a folder of other settings; writes `synth.json` where there is none or it counts fewer cells.
fn agree(settings: &Settings, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join("synth.json");
    if path.exists() {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let old: Settings = serde_json::from_str(&text).with_context(|| {
            format!("{} isn't a description of synthetic cells: give another folder", path.display())
        })?;
        let (now, then) = (serde_json::to_value(settings)?, serde_json::to_value(&old)?);
        for (key, was) in flat(&then) {
            let is = flat(&now).into_iter().find(|(k, _)| *k == key).map(|(_, v)| v);
            if key != "count" && is.as_ref() != Some(&was) {
                bail!(
                    "{} was made with {key} = {was}, not {}: give the same settings to go on, or another folder",
                    dir.display(),
                    is.unwrap_or_default()
                );
            }
        }
        ensure!(
            settings.count >= old.count,
            "{} was begun with {} cells, which is more than {}: give at least as many, or another folder",
            dir.display(),
            old.count,
            settings.count
        );
        if old.count == settings.count {
            return Ok(());
        }
    }
    save(&path, format!("{}\n", serde_json::to_string_pretty(settings)?).as_bytes())
}

/// The settings as names and values, those of the configuration among them.
fn flat(value: &serde_json::Value) -> Vec<(String, serde_json::Value)> {
    let Some(map) = value.as_object() else { return Vec::new() };
    map.iter()
        .flat_map(|(key, value)| if key == "config" { flat(value) } else { vec![(key.clone(), value.clone())] })
        .collect()
}

/// Makes sure of one cell's files; its line for `labels.csv`, and whether its image was drawn now.
fn one(
    generator: &Generator,
    index: u64,
    masks: bool,
    dir: &Path,
    cell: &mut SynthCell,
    png: &mut Vec<u8>,
) -> anyhow::Result<(String, bool)> {
    let class = generator.class(index);
    let (size, white) = (generator.config().size as u32, generator.config().white);
    let depth = if white > 255 { 16 } else { 8 };
    let name = generator.file_name(index);
    let (image, mask) = (dir.join(&name), PathBuf::from("masks").join(&name));
    let there = is_whole(&image, size, depth);
    if there && class == Class::A {
        return Ok((format!("{name},A,,\n"), false));
    }
    generator.cell_into(index, cell);
    if !there {
        encode(cell.frame.pixels(), size, depth, png).with_context(|| format!("encoding {name}"))?;
        save(&image, png)?;
    }
    let masked = masks && !cell.defects.is_empty();
    if masked && !is_whole(&dir.join(&mask), size, 8) {
        png.clear();
        encoder(png).write_image(&cell.mask, size, size, ExtendedColorType::L8).context("encoding a mask")?;
        save(&dir.join(&mask), png)?;
    }
    let kinds: Vec<_> = cell.kinds().map(DefectKind::name).collect();
    let mask = if masked { format!("masks/{name}") } else { String::new() };
    Ok((format!("{name},{class:?},{},{mask}\n", kinds.join("+")), !there))
}

fn encoder(out: &mut Vec<u8>) -> PngEncoder<Cursor<&mut Vec<u8>>> {
    PngEncoder::new_with_quality(Cursor::new(out), CompressionType::Fast, FilterType::Up)
}

fn encode(pixels: &[u16], size: u32, depth: u8, out: &mut Vec<u8>) -> Result<(), image::ImageError> {
    out.clear();
    if depth == 8 {
        let bytes: Vec<u8> = pixels.iter().map(|&p| p as u8).collect();
        encoder(out).write_image(&bytes, size, size, ExtendedColorType::L8)
    } else {
        // The encoder takes 16-bit samples in the machine's byte order.
        let bytes: Vec<u8> = pixels.iter().flat_map(|p| p.to_ne_bytes()).collect();
        encoder(out).write_image(&bytes, size, size, ExtendedColorType::L16)
    }
}

/// Whether the file is a grey PNG of this size from its first chunk to its last.
fn is_whole(path: &Path, size: u32, depth: u8) -> bool {
    let Ok(bytes) = fs::read(path) else { return false };
    let mut head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    head.extend(size.to_be_bytes());
    head.extend(size.to_be_bytes());
    head.extend([depth, 0]);
    bytes.starts_with(&head) && bytes.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Selection;

    static GO: AtomicBool = AtomicBool::new(false);

    fn generator(seed: u64) -> Generator {
        let config = SynthConfig { size: 64, selection: Selection::Balanced, ..SynthConfig::default() };
        Generator::new(config, seed).unwrap()
    }

    fn tree(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
        ["", "masks"]
            .iter()
            .flat_map(|sub| fs::read_dir(dir.join(sub)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .map(|path| (path.strip_prefix(dir).unwrap().display().to_string(), fs::read(&path).unwrap()))
            .collect()
    }

    #[test]
    fn a_data_set_goes_on_where_it_stopped_and_ends_the_same() {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        data_set(&generator(1), 0..12, true, 2, whole.path(), &GO).unwrap();
        data_set(&generator(1), 0..5, true, 1, parts.path(), &GO).unwrap();
        // As after a power cut: one file short, one gone.
        let short = parts.path().join("B000001.png");
        let bytes = fs::read(&short).unwrap();
        fs::write(&short, &bytes[..bytes.len() - 20]).unwrap();
        fs::remove_file(parts.path().join("masks/C000002.png")).unwrap();
        data_set(&generator(1), 0..12, true, 3, parts.path(), &GO).unwrap();
        let (whole, parts) = (tree(whole.path()), tree(parts.path()));
        assert_eq!(whole.len(), 12 + 8 + 2, "images, masks of B and C, labels and settings");
        assert_eq!(whole, parts);
    }

    #[test]
    fn files_hold_what_the_generator_drew() {
        let dir = tempfile::tempdir().unwrap();
        let config =
            SynthConfig { size: 96, white: 65535, selection: Selection::Only(Class::C), ..SynthConfig::default() };
        let generator = Generator::new(config, 4).unwrap();
        data_set(&generator, 0..2, true, 1, dir.path(), &GO).unwrap();
        let cell = generator.cell(1);
        let image = image::open(dir.path().join("C000001.png")).unwrap();
        assert_eq!(image.as_luma16().unwrap().as_raw(), cell.frame.pixels());
        let mask = image::open(dir.path().join("masks/C000001.png")).unwrap();
        assert_eq!(mask.as_luma8().unwrap().as_raw(), &cell.mask);
        let labels = fs::read_to_string(dir.path().join("labels.csv")).unwrap();
        let kinds: Vec<_> = cell.kinds().map(DefectKind::name).collect();
        let line = format!("C000001.png,C,{},masks/C000001.png", kinds.join("+"));
        assert_eq!(labels.lines().nth(2), Some(line.as_str()));
        assert_eq!(labels.lines().next(), Some("file,label,type,mask"));
    }

    #[test]
    fn a_folder_of_other_settings_is_refused_by_the_setting() {
        let dir = tempfile::tempdir().unwrap();
        data_set(&generator(1), 0..3, true, 1, dir.path(), &GO).unwrap();
        let before = tree(dir.path());
        let seed = data_set(&generator(2), 0..3, true, 1, dir.path(), &GO).unwrap_err().to_string();
        assert!(seed.contains("seed = 1, not 2"), "{seed}");
        let masks = data_set(&generator(1), 0..3, false, 1, dir.path(), &GO).unwrap_err().to_string();
        assert!(masks.contains("masks = true, not false"), "{masks}");
        let fewer = data_set(&generator(1), 0..2, true, 1, dir.path(), &GO).unwrap_err().to_string();
        assert!(fewer.contains("begun with 3 cells"), "{fewer}");
        assert_eq!(tree(dir.path()), before);
        fs::write(dir.path().join("synth.json"), "{}").unwrap();
        let other = format!("{:#}", data_set(&generator(1), 0..3, true, 1, dir.path(), &GO).unwrap_err());
        assert!(other.contains("isn't a description of synthetic cells"), "{other}");
    }

    #[test]
    fn an_interruption_is_heeded_and_labels_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let error =
            data_set(&generator(1), 0..50, true, 2, dir.path(), &AtomicBool::new(true)).unwrap_err().to_string();
        assert!(error.contains("interrupted after 0 of 50 cells") && error.contains("again"), "{error}");
        assert!(!dir.path().join("labels.csv").exists());
    }

    #[test]
    fn without_masks_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        data_set(&generator(1), 0..3, false, 1, dir.path(), &GO).unwrap();
        assert!(!dir.path().join("masks").exists());
        let labels = fs::read_to_string(dir.path().join("labels.csv")).unwrap();
        assert!(labels.lines().skip(1).all(|line| line.ends_with(',')), "{labels}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = format!("{:#}", data_set(&generator(1), 0..1, true, 1, &file, &GO).unwrap_err());
        assert!(error.contains("making the folder") && error.contains("file"), "{error}");
    }
}
