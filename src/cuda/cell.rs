//! The way of a cell, captured once and launched for each.

use std::sync::Arc;

use half::f16;

use super::device::{Device, Kernel, arguments};
use super::entry::{CellInput, Entry, Made, ONE_BLOCK, Start, THREADS};
use super::evidence::{Asking, Pooling};
use super::room::Room;
use super::sensor::Sensor;
use super::statistics::DeviceStatistics;
use super::stream::{Event, Graph, Stream};
use super::{CudaError, DeviceNetwork, Networks};
use crate::classifier::judge::Description;
use crate::frame::Frame;
use crate::gaussian::Statistics;
use crate::heatmap::{Regions, Scores};
use crate::preprocess::Placement;
use crate::preprocess::sensor::Correction;

/// What a graph is made for.
#[derive(Clone, Copy, Debug)]
pub struct CellSettings<'a> {
    /// How cells come in.
    pub start: Start,
    /// Side S of the rectified image.
    pub size: usize,
    /// Stages of which the network gives a map.
    pub stages: [bool; 4],
    /// One half of the smoothing's window ([`Analyser::window`](crate::heatmap::Analyser::window)).
    pub window: &'a [f32],
    /// The level above which regions lie.
    pub level: f32,
    /// What cells are measured against.
    pub statistics: Statistics<'a>,
    /// Who judges them, if it is more than their scores.
    pub judge: Option<&'a Description>,
}

/// What the device says of a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Findings {
    /// The scores; none if a number on the way was not finite.
    pub scores: Option<Scores>,
    /// The parts of the heatmap above the level.
    pub regions: Regions,
}

/// The steps of a cell on the device, in order; [`CellGraph::time`] tells them apart. Without a judge that asks for them
/// nothing is done for `pool`, `planes` and `classifier`.
pub const STEPS: [&str; 9] =
    ["frame", "image", "network", "pool", "distance", "heatmap", "planes", "classifier", "copy out"];

/// A device, networks and statistics, ready for cells.
pub struct CellGraph {
    /// There from the end of `new` on.
    graph: Option<Graph>,
    features: Box<dyn DeviceNetwork>,
    statistics: DeviceStatistics,
    kernels: Kernels,
    memory: Room,
    stream: Stream,
}

struct Kernels {
    rows: Kernel,
    columns: Kernel,
    scores: Kernel,
    regions: Kernel,
}

impl CellGraph {
    /// Allocates everything, runs the networks once, and captures the graph.
    ///
    /// # Errors
    /// If the device has not enough memory, the kernels cannot do what the model asks for, the judge asks a network that is
    /// not there, or a call fails.
    pub fn new(device: &Arc<Device>, networks: Networks, settings: &CellSettings<'_>) -> Result<Self, CudaError> {
        device.enter()?;
        let mut this = Self {
            graph: None,
            features: networks.features,
            kernels: Kernels {
                rows: device.kernel(c"smooth_rows", 0)?,
                columns: device.kernel(c"smooth_columns", 0)?,
                scores: device.kernel(c"heatmap_scores", 0)?,
                regions: device.kernel(c"heatmap_regions", 0)?,
            },
            statistics: DeviceStatistics::new(device, &settings.statistics)?,
            memory: Room::new(device, networks.classifier, settings)?,
            stream: Stream::new(device)?,
        };
        // Outside of the capture at first: what is set up lazily is there then, and what fails says so itself.
        this.put(true, &mut |_, _| Ok(()))?;
        this.stream.wait("running the way of a cell for the first time")?;
        this.capture()?;
        Ok(this)
    }

    fn capture(&mut self) -> Result<(), CudaError> {
        self.graph = None;
        self.memory.entry.capture(&self.stream)?;
        self.stream.begin_capture()?;
        let put = self.put(false, &mut |_, _| Ok(()));
        // Even after an error: a stream that is left in its capture can do nothing else.
        self.graph = Some(self.stream.end_capture(put)?);
        Ok(())
    }

    /// The device that it runs on.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        self.stream.device()
    }

    /// The device and the network of the features, in words.
    #[must_use]
    pub fn describe(&self) -> String {
        format!("{}, {}", self.stream.device().describe(), self.features.name())
    }

    /// Bytes of device memory that it holds, the networks' own included.
    #[must_use]
    pub fn device_memory(&self) -> usize {
        self.statistics.bytes() + self.memory.bytes() + self.features.device_memory()
    }

    /// Lets the device correct this sensor's frames from now on, in the place of any other sensor's. What was in force stays so
    /// after an error.
    ///
    /// # Errors
    /// If there is no memory, or a call fails.
    pub fn use_sensor(&mut self, sensor: &Arc<Correction>) -> Result<(), CudaError> {
        let device = Arc::clone(self.stream.device());
        device.enter()?;
        let sensor = Arc::new(Sensor::new(&device, sensor)?);
        let start = self.memory.entry.start();
        let start = Start { side: start.side.max(sensor.side()), ..start };
        self.replace_entry(&device, start, Some(sensor))
    }

    /// Corrects a frame in place; false, and nothing done, if it is not for the [sensor in use](Self::use_sensor) or lies where
    /// the device does not see it ([`Device::frame`]). Allocates nothing unless it fails.
    ///
    /// # Errors
    /// If a call fails, or the device left the frame as it was. Nothing is known of its pixels then, and the device should be
    /// given up.
    pub fn correct(&mut self, frame: &mut Frame, sensor: &Arc<Correction>) -> Result<bool, CudaError> {
        self.stream.device().enter()?;
        self.memory.entry.correct(&self.stream, frame, sensor)
    }

    /// Measures the cell that lies there in a frame. Allocates nothing unless it fails.
    ///
    /// # Errors
    /// If a call fails, or the device left results unwritten. Nothing is known of the cell then, and the device should be
    /// given up.
    ///
    /// # Panics
    /// If the frame is larger than there is [room](Self::make_room) for, or not the one that was corrected.
    pub fn run(&mut self, input: CellInput<'_>, placement: &Placement) -> Result<Findings, CudaError> {
        self.stream.device().enter()?;
        self.memory.prepare();
        let Self { graph: Some(graph), memory, stream, .. } = self else { unreachable!("captured by `new`") };
        let taken = memory.entry.take(stream, input, placement);
        let launched = taken.and_then(|()| stream.launch(graph));
        // After an error, too: the frame goes back to its owner, and the device may be reading it.
        let waited = stream.wait("measuring a cell");
        memory.entry.let_go();
        launched.and(waited)?;
        memory.findings()
    }

    /// The heatmap of the last cell, smoothed: grid² distances.
    #[must_use]
    pub fn heatmap(&self) -> &[f32] {
        self.memory.heatmap.values()
    }

    /// The features of the last cell: [`POOLED`](crate::classifier::features::POOLED) numbers of each view that the judge asks
    /// for, not averaged; empty if it asks for none.
    #[must_use]
    pub fn pooled(&self) -> &[f32] {
        self.memory.pooling.as_ref().map_or(&[], Pooling::pooled)
    }

    /// What the classifier's network said of the last cell: a logit for each level, for each of the judge's
    /// [ways](Description::ways); empty if the judge asks no network.
    #[must_use]
    pub fn logits(&self) -> &[f16] {
        self.memory.asking.as_ref().map_or(&[], Asking::logits)
    }

    /// What the device made of the last cell's frame.
    ///
    /// # Errors
    /// If the device left it unwritten.
    pub fn made(&self) -> Result<Made<'_>, CudaError> {
        self.memory.entry.made()
    }

    /// Makes room for frames of this side, if there is less: by new memory, and a graph that knows it.
    ///
    /// # Errors
    /// If there is no room; all stays as it was then.
    pub fn make_room(&mut self, side: usize) -> Result<(), CudaError> {
        let start = self.memory.entry.start();
        if side <= start.side {
            return Ok(());
        }
        let device = Arc::clone(self.stream.device());
        device.enter()?;
        let sensor = self.memory.entry.sensor().cloned();
        self.replace_entry(&device, Start { side, ..start }, sensor)
    }

    fn replace_entry(
        &mut self,
        device: &Arc<Device>,
        start: Start,
        sensor: Option<Arc<Sensor>>,
    ) -> Result<(), CudaError> {
        let entry = Entry::new(device, start, self.memory.size, sensor)?;
        let (old, old_graph) = (std::mem::replace(&mut self.memory.entry, entry), self.graph.take());
        let captured = self.capture();
        if captured.is_err() {
            (self.memory.entry, self.graph) = (old, old_graph);
        }
        captured
    }

    /// Milliseconds that each of [`STEPS`] takes with the last frame, outside of the graph, in each of `runs` runs.
    ///
    /// # Errors
    /// If a call fails.
    pub fn time(&mut self, runs: usize) -> Result<Vec<[f32; STEPS.len()]>, CudaError> {
        let device = Arc::clone(self.stream.device());
        device.enter()?;
        let events = (0..=STEPS.len()).map(|_| Event::new(&device)).collect::<Result<Vec<_>, _>>()?;
        let mut all = Vec::with_capacity(runs);
        for _ in 0..runs {
            events[0].record(&self.stream)?;
            self.put(true, &mut |step, stream| events[step + 1].record(stream))?;
            self.stream.wait("timing the steps of a cell")?;
            let mut times = [0.0; STEPS.len()];
            for (step, time) in times.iter_mut().enumerate() {
                *time = events[step + 1].since(&events[step])?;
            }
            all.push(times);
        }
        Ok(all)
    }

    /// Measures against other statistics from the next cell on: of the same grid and k. The old ones are in force until
    /// the new ones are on the device and captured, and stay so after an error.
    ///
    /// # Errors
    /// If they do not fit, the device has no memory for both at once, or a call fails.
    pub fn replace_statistics(&mut self, statistics: &Statistics<'_>) -> Result<(), CudaError> {
        let device = Arc::clone(self.stream.device());
        let (now, new) = (self.statistics.shape(), (statistics.grid(), statistics.k()));
        if now != new {
            let what =
                format!("statistics of a grid of {} and k = {} in the place of {} and {}", new.0, new.1, now.0, now.1);
            return Err(CudaError::Unsupported { what });
        }
        device.enter()?;
        let new = DeviceStatistics::new(&device, statistics)?;
        let (old, old_graph) = (std::mem::replace(&mut self.statistics, new), self.graph.take());
        let captured = self.capture();
        if captured.is_err() {
            (self.statistics, self.graph) = (old, old_graph);
        }
        captured
    }
}

impl CellGraph {
    /// Puts the way of a cell on the stream, step by step, with that of the frame to the device or without; `done` is told after
    /// each.
    fn put(
        &mut self,
        with_frame: bool,
        done: &mut dyn FnMut(usize, &Stream) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let Self { features, statistics, kernels, memory, stream, .. } = self;
        let (device, handle) = (stream.device(), stream.handle());
        let positions = memory.grid * memory.grid;
        let (side, count) = (memory.grid as i32, positions as i32);
        let blocks = |values: usize| [values.div_ceil(THREADS), 1];
        let (threads, one) = ([THREADS as u32, 1], [ONE_BLOCK, 1]);
        // SAFETY: each kernel gets its own arguments, and buffers that `Room::new` made of the sizes that it names, which
        // live as long as this; whoever drops it waits for the stream first.
        unsafe {
            if with_frame {
                memory.entry.put_frame(stream)?;
                done(0, stream)?;
            }
            let input = memory.input.address();
            memory.entry.put(stream, memory.size, input)?;
            if let Some(pooling) = &memory.pooling {
                pooling.put_views(stream, input)?;
            }
            done(1, stream)?;
            features.enqueue(input, &memory.outputs, handle)?;
            done(2, stream)?;
            if let Some(pooling) = &memory.pooling {
                pooling.put(stream)?;
            }
            done(3, stream)?;
            let (distances, blurred, window) =
                (memory.distances.address(), memory.blurred.address(), memory.window.address());
            statistics.measure(stream, &memory.maps(), distances)?;
            done(4, stream)?;
            let radius = memory.radius() as i32;
            if radius > 0 {
                let arguments = arguments![distances, blurred, window, radius, side];
                kernels.rows.launch(device, handle, blocks(positions), threads, arguments)?;
                let arguments = arguments![blurred, distances, window, radius, side];
                kernels.columns.launch(device, handle, blocks(positions), threads, arguments)?;
            }
            let (scores, regions) = (memory.scores.address(), memory.regions.address());
            kernels.scores.launch(device, handle, [1, 1], one, arguments![distances, count, scores])?;
            let (level, scratch) = (memory.level, memory.scratch.address());
            let arguments = arguments![distances, level, side, scratch, regions];
            kernels.regions.launch(device, handle, [1, 1], one, arguments)?;
            done(5, stream)?;
            if let Some(asking) = &mut memory.asking {
                asking.put_planes(stream, distances, input)?;
            }
            done(6, stream)?;
            if let Some(asking) = &mut memory.asking {
                asking.put(stream)?;
            }
            done(7, stream)?;
            memory.distances.download(stream, &mut memory.heatmap)?;
            memory.entry.put_back(stream)?;
            if let Some(asking) = &mut memory.asking {
                asking.put_back(stream)?;
            }
            done(8, stream)
        }
    }
}

impl Drop for CellGraph {
    fn drop(&mut self) {
        // Nothing may be freed that the device still works on; whether it failed is of no matter any more.
        let _ = self.stream.device().enter();
        let _ = self.stream.wait("ending");
    }
}
