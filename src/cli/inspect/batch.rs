//! Many cells on all cores: each thread with an inspector of its own, the results told in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use crate::backbone::ResNet18;
use crate::backbone::cpu::CpuBackbone;
use crate::embedding::Stages;
use crate::eval::dataset::{Dataset, Item};
use crate::model::Model;
use crate::pipeline::Inspector;
use crate::verdict::{Class, Outcome, Verdict};
use crate::workers::Workers;

/// Inspectors for all cores.
pub struct Batch {
    inspectors: Vec<Inspector>,
}

impl Batch {
    /// `streams` cells in flight at the same time, on an equal share of `threads` each, at least one.
    ///
    /// # Errors
    /// If the model is not calibrated, or was fitted with another backbone.
    pub fn new(model: &Arc<Model>, network: &ResNet18, threads: usize, streams: usize) -> anyhow::Result<Self> {
        model.check_backbone(network.identity())?;
        if model.header().calibration.is_none() {
            anyhow::bail!(
                "the model {:.12} is not calibrated and can judge nothing: run `cellgate calibrate` on good cells first",
                model.id()
            );
        }
        let streams = streams.max(1);
        let each = (threads / streams).max(1);
        let size = model.header().settings.size as usize;
        let projection = model.projection();
        let stages = Stages(std::array::from_fn(|stage| projection.uses(stage)));
        let first = Arc::new(Workers::new(each));
        let backbone = CpuBackbone::for_stages(network, size, stages.0, &first)?;
        let mut inspectors = Vec::with_capacity(streams);
        for _ in 1..streams {
            let workers = Arc::new(Workers::new(each));
            let another = Box::new(backbone.another_on(Arc::clone(&workers)));
            inspectors.push(Inspector::new(Arc::clone(model), another, workers)?);
        }
        inspectors.push(Inspector::new(Arc::clone(model), Box::new(backbone), first)?);
        Ok(Self { inspectors })
    }

    /// Calls `judge` for the indices from 0 to `count − 1`, each on some thread, and `tell` on this one with the results
    /// in order, as soon as each one's turn has come. Ends early when `stop` is set or `tell` fails; gives how many were
    /// told.
    ///
    /// # Errors
    /// What `tell` says.
    pub fn run<T: Send>(
        &mut self,
        count: usize,
        stop: &AtomicBool,
        judge: impl Fn(&mut Inspector, usize) -> T + Sync,
        mut tell: impl FnMut(usize, T) -> anyhow::Result<()>,
    ) -> anyhow::Result<usize> {
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            for inspector in &mut self.inspectors {
                let (send, next, failed, judge) = (send.clone(), &next, &failed, &judge);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= count || send.send((index, judge(inspector, index))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(send);
            let (mut waiting, mut told) = (BTreeMap::new(), 0);
            for (index, result) in receive {
                waiting.insert(index, result);
                while let Some(result) = waiting.remove(&told) {
                    if let Err(error) = tell(told, result) {
                        failed.store(true, Ordering::Relaxed);
                        return Err(error);
                    }
                    told += 1;
                }
            }
            Ok(told)
        })
    }

    /// All inspectors.
    pub fn inspectors(&mut self) -> &mut [Inspector] {
        &mut self.inspectors
    }

    /// The first inspector, for a cell outside a run.
    pub fn inspector(&mut self) -> &mut Inspector {
        &mut self.inspectors[0]
    }
}

/// The images of all arguments, each under a name of its own.
///
/// # Errors
/// If one of the arguments is no image, folder of images or list of them.
pub fn gather(data: &[PathBuf]) -> anyhow::Result<Vec<Item>> {
    let sets = data.iter().map(Dataset::open).collect::<Result<Vec<_>, _>>()?;
    let mut seen: HashMap<String, usize> = HashMap::new();
    sets.iter().flat_map(|set| &set.items).for_each(|item| *seen.entry(item.id.clone()).or_default() += 1);
    let mut items = Vec::new();
    for item in sets.into_iter().flat_map(|set| set.items) {
        let id = if seen[&item.id] > 1 { item.path.display().to_string() } else { item.id.clone() };
        items.push(Item { id, ..item });
    }
    let ids = unique(items.iter().map(|item| item.id.clone()), |id, n| format!("{id}#{n}"));
    items.iter_mut().zip(ids).for_each(|(item, id)| item.id = id);
    Ok(items)
}

/// A file name for each item's picture: no folders, no two alike.
#[must_use]
pub fn picture_names(items: &[Item]) -> Vec<String> {
    let stems = items.iter().map(|item| {
        let name = item.id.trim_start_matches("./");
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let plain: String = stem
            .chars()
            .map(|c| if c.is_alphanumeric() || matches!(c, '-' | '.' | '#' | ' ') { c } else { '_' })
            .collect();
        // Names of files may have 255 bytes.
        let plain = plain.trim_start_matches(['.', '_']);
        let from = plain.char_indices().rev().map(|(at, _)| at).take_while(|at| plain.len() - at <= 200).last();
        plain[from.unwrap_or(plain.len())..].to_string()
    });
    unique(stems, |stem, n| format!("{stem}-{n}")).into_iter().map(|stem| format!("{stem}.overlay.png")).collect()
}

/// Each name as it is, or changed by `other` with 2, 3, … until none before it is the same.
fn unique(names: impl Iterator<Item = String>, other: impl Fn(&str, usize) -> String) -> Vec<String> {
    let mut taken = HashSet::new();
    let mut next: HashMap<String, usize> = HashMap::new();
    names
        .map(|name| {
            let mut chosen = name.clone();
            while !taken.insert(chosen.clone()) {
                let n = next.entry(name.clone()).or_insert(1);
                *n += 1;
                chosen = other(&name, *n);
            }
            chosen
        })
        .collect()
}

/// What the arguments are called together.
#[must_use]
pub fn name_of_all(data: &[PathBuf]) -> String {
    let name = |path: &Path| {
        let whole = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
    };
    match data {
        [] => String::new(),
        [one] => name(one),
        [first, rest @ ..] => format!("{} and {} more", name(first), rest.len()),
    }
}

/// How many of each, and how long they took.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    classes: [usize; 3],
    reasons: BTreeMap<&'static str, usize>,
    times: Vec<u32>,
}

impl Tally {
    /// Counts one verdict.
    pub fn add(&mut self, verdict: &Verdict) {
        match &verdict.outcome {
            Outcome::Pass(Class::A) => self.classes[0] += 1,
            Outcome::Pass(_) => self.classes[1] += 1,
            Outcome::Reject => self.classes[2] += 1,
            Outcome::Invalid(reason) => *self.reasons.entry(reason.name()).or_default() += 1,
        }
        self.times.push(verdict.latency.total_us());
    }

    /// Cells counted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// Cells that the line would take out.
    #[must_use]
    pub fn not_passed(&self) -> usize {
        self.classes[2] + self.reasons.values().sum::<usize>()
    }

    /// One line of it all.
    #[must_use]
    pub fn summary(&self, seconds: f64) -> String {
        let mut times = self.times.clone();
        times.sort_unstable();
        let n = times.len();
        let median = times.get(n / 2).map_or(0.0, |us| f64::from(*us) / 1e3);
        let [a, b, c] = self.classes;
        let invalid: usize = self.reasons.values().sum();
        let reasons: Vec<String> = self.reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        format!(
            "{n} cell{} in {seconds:.1} s, {:.1} cells/s, median {median:.1} ms a cell: {a} PASS A, {b} PASS B, {c} REJECT, \
             {invalid} INVALID{reasons}",
            if n == 1 { "" } else { "s" },
            n as f64 / seconds.max(1e-9),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str) -> Item {
        Item::new(PathBuf::from(id), id.into())
    }

    #[test]
    fn pictures_never_leave_their_folder_nor_overwrite_one_another() {
        let long = "x/".repeat(400) + "end.png";
        let ids = ["a/b.png", "a_b.png", "a/b.tif", "../../etc/x.png", "/etc/y.png", "..", "é\n\".png", &long];
        let names = picture_names(&ids.map(item));
        assert_eq!(names[..3], ["a_b.overlay.png", "a_b-2.overlay.png", "a_b-3.overlay.png"]);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        assert!(names.iter().all(|n| !n.contains(['/', '\\', '\n', '"']) && n.len() < 240), "{names:?}");
        assert!(names[7].ends_with("end.overlay.png"));
    }

    #[test]
    fn cells_of_one_name_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["one/a.png", "two/a.png", "two/b.png"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let path = |name: &str| dir.path().join(name);
        let items = gather(&[path("one"), path("two"), path("two/b.png")]).unwrap();
        let ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        assert!(ids[0].ends_with("one/a.png") && ids[1].ends_with("two/a.png"), "{ids:?}");
        assert!(ids[2].ends_with("two/b.png") && ids[3] == format!("{}#2", ids[2]), "{ids:?}");
        assert!(gather(&[path("none")]).unwrap_err().to_string().contains("none"));
    }
}
