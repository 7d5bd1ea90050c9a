//! All memory of a cell's way but the statistics and the first network's own.

use std::sync::Arc;

use half::f16;

use super::cell::{CellSettings, Findings};
use super::entry::{Entry, UNWRITTEN};
use super::evidence::{Asking, Pooling};
use super::memory::{Buffer, Mapped};
use super::statistics::{Maps, map_stride};
use super::{CudaError, Device, DeviceNetwork};
use crate::backbone::STAGE_STRIDES;
use crate::classifier::evidence;
use crate::classifier::judge::Description;
use crate::heatmap::{MAX_REGIONS, Region, Regions, Scores};

/// Words of the kernels' `Scores`: top, maximum, mean, whether all numbers are finite.
const SCORES: usize = 4;
/// Words of their `Regions`: how many there are, how many were kept, and four of each.
const REGIONS: usize = 2 + 4 * MAX_REGIONS;

/// Buffers and what they were made for.
pub(super) struct Room {
    pub(super) size: usize,
    pub(super) grid: usize,
    pub(super) level: f32,
    /// What comes in.
    pub(super) entry: Entry,
    /// The views of the image that the network sees, the image itself first.
    pub(super) input: Buffer<f16>,
    /// The maps of the stages that are used, of each view; and where the network leaves all that it gives.
    maps: Vec<(usize, Buffer<f16>)>,
    pub(super) outputs: Vec<u64>,
    pub(super) window: Buffer<f32>,
    window_length: usize,
    pub(super) distances: Buffer<f32>,
    pub(super) blurred: Buffer<f32>,
    pub(super) scratch: Buffer<u32>,
    /// What the judge goes by, beside the heatmap.
    pub(super) pooling: Option<Pooling>,
    pub(super) asking: Option<Asking>,
    /// What goes out.
    pub(super) heatmap: Mapped<f32>,
    pub(super) scores: Mapped<u32>,
    pub(super) regions: Mapped<u32>,
}

impl Room {
    /// `classifier` is the network that the judge asks.
    pub(super) fn new(
        device: &Arc<Device>,
        classifier: Option<Box<dyn DeviceNetwork>>,
        settings: &CellSettings<'_>,
    ) -> Result<Self, CudaError> {
        let CellSettings { start, size, stages, window, level, ref statistics, judge } = *settings;
        let (grid, k) = (statistics.grid(), statistics.k());
        let (pixels, positions) = (size * size, grid * grid);
        let views = evidence::ways(judge.map_or(0, Description::pooled_views));
        let images = views.len().max(1);
        let mut maps = Vec::with_capacity(4);
        for stage in (0..4).filter(|&stage| stages[stage]) {
            let side = size / STAGE_STRIDES[stage];
            maps.push((stage, Buffer::new(device, "a stage's map", images * side * side * map_stride(k))?));
        }
        let pooling = if views.is_empty() { None } else { Some(Pooling::new(device, size, views)?) };
        let raw = pooling.iter().flat_map(Pooling::stages);
        let outputs = maps.iter().map(|(_, map)| map.address()).chain(raw).collect();
        let asking = match judge.and_then(|judge| Some((judge, judge.planes?))) {
            None => None,
            Some((judge, planes)) => {
                let Some(network) = classifier else {
                    return Err(CudaError::Unsupported { what: "a judge without the classifier's network".into() });
                };
                let levels = judge.levels as usize;
                Some(Asking::new(device, network, [size, grid, k, judge.side as usize], planes, judge.ways(), levels)?)
            }
        };
        Ok(Self {
            size,
            grid,
            level,
            entry: Entry::new(device, start, size, None)?,
            input: Buffer::new(device, "the network's input", images * pixels)?,
            maps,
            outputs,
            window: Buffer::of(device, "the smoothing's window", window)?,
            window_length: window.len(),
            distances: Buffer::new(device, "the heatmap", positions)?,
            blurred: Buffer::new(device, "the heatmap", positions)?,
            scratch: Buffer::new(device, "the regions", 7 * positions)?,
            pooling,
            asking,
            heatmap: Mapped::new(device, "the heatmap", positions)?,
            scores: Mapped::new(device, "the scores", SCORES)?,
            regions: Mapped::new(device, "the regions", REGIONS)?,
        })
    }

    /// Bytes of device memory, the classifier's own included.
    pub(super) fn bytes(&self) -> usize {
        let maps: usize = self.maps.iter().map(|(_, map)| map.bytes()).sum();
        let heat = self.distances.bytes() + self.blurred.bytes() + self.scratch.bytes();
        let judged = self.pooling.as_ref().map_or(0, Pooling::bytes) + self.asking.as_ref().map_or(0, Asking::bytes);
        self.entry.bytes() + self.input.bytes() + maps + self.window.bytes() + heat + judged
    }

    /// Positions to either side that the smoothing reaches.
    pub(super) fn radius(&self) -> usize {
        self.window_length - 1
    }

    /// The maps as the kernels take them.
    pub(super) fn maps(&self) -> Maps {
        let mut maps = Maps { data: [0; 4], side: STAGE_STRIDES.map(|stride| (self.size / stride) as i32) };
        self.maps.iter().for_each(|(stage, map)| maps.data[*stage] = map.address());
        maps
    }

    /// Makes the results of the cell before unreadable.
    pub(super) fn prepare(&mut self) {
        self.heatmap.values_mut().fill(f32::from_bits(UNWRITTEN));
        self.scores.values_mut().fill(UNWRITTEN);
        self.regions.values_mut().fill(UNWRITTEN);
        self.pooling.iter_mut().for_each(Pooling::prepare);
        self.asking.iter_mut().for_each(Asking::prepare);
    }

    /// What the device has written.
    pub(super) fn findings(&self) -> Result<Findings, CudaError> {
        let (&[top, max, mean, finite], regions) = (self.scores.values(), self.regions.values()) else {
            unreachable!("{SCORES} words")
        };
        let ([total, kept], found) = (&regions[..2], &regions[2..]) else { unreachable!("{REGIONS} words") };
        let whole = self.heatmap.values().iter().all(|m| m.is_finite());
        let known = match finite {
            0 => !whole,
            1 => whole && [top, max, mean].iter().all(|&word| f32::from_bits(word).is_finite()),
            _ => false,
        };
        if !known || *kept != (*total).min(MAX_REGIONS as u32) || *total as usize > self.heatmap.values().len() {
            return Err(CudaError::Unwritten);
        }
        // Of a heatmap that is not finite nothing is judged, whatever the networks make of it.
        let judged = self.pooling.as_ref().is_none_or(Pooling::is_written)
            && self.asking.as_ref().is_none_or(Asking::is_written);
        if finite == 1 && !judged {
            return Err(CudaError::Unwritten);
        }
        let region = |words: &[u32]| Region {
            left: words[0] as u16,
            top: (words[0] >> 16) as u16,
            right: words[1] as u16,
            bottom: (words[1] >> 16) as u16,
            area: words[2],
            peak: f32::from_bits(words[3]),
        };
        let [top, max, mean] = [top, max, mean].map(f32::from_bits);
        let regions = Regions::from_found(found.chunks_exact(4).take(*kept as usize).map(region), *total as usize);
        Ok(Findings { scores: (finite == 1).then_some(Scores { top, max, mean }), regions })
    }
}
