//! A contact sheet: many cells on one picture, each defect outlined in the colour of its kind.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use image::RgbImage;

use crate::cli::shared::save;
use crate::synth::{DefectKind, Generator, SynthCell};

/// Pixels on each side of a cell's picture, and the most cells on a sheet.
const TILE: usize = 360;
const MOST: u64 = 100;

pub(super) fn preview(generator: &Generator, count: u64, file: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(count <= MOST, "a contact sheet holds at most {MOST} cells: give a smaller --count");
    let columns = (1..).find(|c| c * c >= count).unwrap_or(1).max(count.min(4)) as usize;
    let rows = (count as usize).div_ceil(columns);
    let mut sheet = RgbImage::new((columns * TILE) as u32, (rows * TILE) as u32);
    let (mut cell, mut out) = (SynthCell::default(), std::io::stdout().lock());
    for index in 0..count {
        generator.cell_into(index, &mut cell);
        let (left, top) = (index as usize % columns * TILE, index as usize / columns * TILE);
        tile(&cell, &mut sheet, left, top);
        let kinds: Vec<_> = cell.kinds().map(DefectKind::name).collect();
        writeln!(out, "row {} column {}: {:?} {}", top / TILE + 1, left / TILE + 1, cell.class, kinds.join("+"))?;
    }
    let mut png = Vec::new();
    sheet.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).context("encoding the sheet")?;
    save(file, &png)
}

fn tile(cell: &SynthCell, sheet: &mut RgbImage, left: usize, top: usize) {
    let (size, white) = (cell.frame.width(), f32::from(cell.frame.white()));
    // Each tile pixel is the mean of the frame pixels under it, and takes the greatest mask code among them.
    let span = |i: usize| {
        let first = i * size / TILE;
        first..((i + 1) * size / TILE).max(first + 1)
    };
    let mut codes = vec![0_u8; TILE * TILE];
    for y in 0..TILE {
        for x in 0..TILE {
            let (mut sum, mut n) = (0_u64, 0);
            for fy in span(y) {
                for fx in span(x) {
                    sum += u64::from(cell.frame.row(fy)[fx]);
                    n += 1;
                    codes[y * TILE + x] = codes[y * TILE + x].max(cell.mask[fy * size + fx]);
                }
            }
            let grey = (sum as f32 / n as f32 * 255.0 / white) as u8;
            sheet.put_pixel((left + x) as u32, (top + y) as u32, image::Rgb([grey; 3]));
        }
    }
    // A line three pixels away from the defect, so that the defect itself stays in view.
    for y in 0..TILE {
        for x in 0..TILE {
            let near = |reach: usize| {
                let columns = x.saturating_sub(reach)..(x + reach + 1).min(TILE);
                (y.saturating_sub(reach)..(y + reach + 1).min(TILE))
                    .flat_map(|v| &codes[v * TILE..][columns.clone()])
                    .copied()
                    .max()
                    .and_then(DefectKind::from_code)
            };
            if let (Some(kind), None) = (near(4), near(3)) {
                sheet.put_pixel((left + x) as u32, (top + y) as u32, image::Rgb(colour(kind)));
            }
        }
    }
}

fn colour(kind: DefectKind) -> [u8; 3] {
    match kind {
        DefectKind::DarkSpot => [230, 60, 60],
        DefectKind::GreyDots => [70, 190, 250],
        DefectKind::BlackDots => [60, 100, 250],
        DefectKind::CrackStraight => [250, 200, 40],
        DefectKind::CrackCross => [250, 150, 30],
        DefectKind::CrackBranching => [200, 240, 50],
        DefectKind::Scratch => [60, 220, 110],
        DefectKind::FingerInterruption => [220, 90, 240],
        DefectKind::DarkEdge => [250, 120, 160],
        DefectKind::Dimmed => [150, 150, 250],
    }
}
