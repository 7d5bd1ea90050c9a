//! Which `labels.csv` speaks of which image.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::super::labels::{self, LabelsError};
use super::{DatasetError, Item, LABELS_FILE};

/// Files under the folders' real paths, so that `a.png`, `./x/../a.png` and `/data/a.png` are one. A file that is itself
/// a link keeps its name: labels name what stands in the folder.
#[derive(Default)]
struct Places(HashMap<PathBuf, Option<PathBuf>>);

impl Places {
    fn folder(&mut self, folder: &Path) -> Option<PathBuf> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        if let Some(known) = self.0.get(folder) {
            return known.clone();
        }
        let real = std::fs::canonicalize(folder).ok();
        self.0.insert(folder.to_path_buf(), real.clone());
        real
    }

    fn of(&mut self, file: &Path) -> Option<PathBuf> {
        Some(self.folder(file.parent()?)?.join(file.file_name()?))
    }
}

/// Tells the items what is known about them, and gives the label files that do.
///
/// The file in `root` comes first and is always given; with `all`, each of its lines must name an image. An image of
/// which it says nothing is looked for in the labels of its own folder, of the folder above it, and of the one above
/// `root`: a part of a labelled data set stays labelled.
pub(super) fn tell(root: &Path, items: &mut [Item], all: bool) -> Result<Vec<PathBuf>, DatasetError> {
    let mut places = Places::default();
    let mut index: HashMap<PathBuf, Vec<usize>> = HashMap::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        if let Some(place) = places.of(&item.path) {
            index.entry(place).or_default().push(at);
        }
    }
    let top = places.folder(root);
    let mut others: BTreeSet<PathBuf> = places.0.values().flatten().cloned().collect();
    others.extend(others.clone().iter().filter_map(|folder| folder.parent()).map(Path::to_path_buf));
    let mut others: Vec<PathBuf> = others.into_iter().filter(|folder| Some(folder) != top.as_ref()).collect();
    // The nearest first.
    others.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));

    let mut told = vec![false; items.len()];
    let mut files = Vec::new();
    for (at, folder) in std::iter::once(root).chain(others.iter().map(PathBuf::as_path)).enumerate() {
        let (own, file) = (at == 0, folder.join(LABELS_FILE));
        if !file.is_file() {
            continue;
        }
        let rows = match labels::read(&file) {
            // Some other program's file.
            Err(LabelsError::Header { .. }) if !own => continue,
            rows => rows?,
        };
        let mut speaks = own;
        for row in rows {
            let found = places.of(&folder.join(&row.file)).and_then(|place| index.get(&place));
            let Some(found) = found else {
                if own && all {
                    return Err(DatasetError::LabelWithoutImage { labels: file, line: row.line, file: row.file });
                }
                continue;
            };
            let mask = row.mask.map(|mask| folder.join(mask));
            if let Some(path) = mask.as_ref().filter(|path| !path.is_file()) {
                return Err(DatasetError::MaskMissing { labels: file, line: row.line, path: path.clone() });
            }
            for &at in found {
                if !std::mem::replace(&mut told[at], true) {
                    let item = &mut items[at];
                    (item.label, item.kind, item.mask) = (row.label, row.kind.clone(), mask.clone());
                    speaks = true;
                }
            }
        }
        if speaks {
            files.push(file);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::super::Dataset;
    use super::super::tests::folder;

    fn labels(set: &Dataset) -> Vec<String> {
        set.items.iter().map(|item| item.label.map_or("none".into(), |label| label.to_string())).collect()
    }

    #[test]
    fn however_a_list_writes_its_paths_they_find_their_labels() {
        let text = "file,label\na.png,A\nx/b.png,C\nc.png,B\n";
        let dir = folder(&[("set/a.png", ""), ("set/x/b.png", ""), ("set/c.png", ""), ("set/labels.csv", text)]);
        let set = dir.path().join("set");
        let absolute = format!("{0}/a.png\n{0}/x/b.png\n", set.display());
        let lists = [
            ("set/absolute.txt", absolute.as_str()),
            ("set/dots.txt", "././a.png\nx/../x//b.png\n"),
            ("set/x/above.txt", "../a.png\nb.png\n"),
            ("elsewhere.txt", absolute.as_str()),
        ];
        for (name, text) in lists {
            std::fs::write(dir.path().join(name), text).unwrap();
            let opened = Dataset::open(dir.path().join(name)).unwrap();
            assert_eq!(labels(&opened), ["A", "C"], "{name}");
            assert_eq!(opened.labels.len(), 1, "{name}");
        }
    }

    #[test]
    fn labels_above_the_folder_or_within_its_parts_are_seen() {
        let dir = folder(&[
            ("elpv/images/1.png", ""),
            ("elpv/images/2.png", ""),
            ("elpv/labels.csv", "images/1.png  0.0  mono\nimages/2.png  1.0  mono\nimages/3.png  1.0  mono\n"),
            ("lines/one/a.png", ""),
            ("lines/one/labels.csv", "file,label\na.png,C\n"),
            ("lines/two/a.png", ""),
        ]);
        assert_eq!(labels(&Dataset::open(dir.path().join("elpv/images")).unwrap()), ["0", "1"]);
        assert_eq!(labels(&Dataset::open(dir.path().join("elpv/images/2.png")).unwrap()), ["1"]);
        assert_eq!(labels(&Dataset::open(dir.path().join("lines")).unwrap()), ["C", "none"]);
    }

    #[test]
    fn labels_of_others_are_left_alone() {
        let dir = folder(&[
            ("labels.csv", "name;price\nx;1\n"),
            ("set/a.png", ""),
            ("set/labels.csv", "file,label\n"),
            ("bare/a.png", ""),
        ]);
        let bare = Dataset::open(dir.path().join("bare")).unwrap();
        assert_eq!((labels(&bare), bare.labels.len()), (vec!["none".to_string()], 0));
        let set = Dataset::open(dir.path().join("set")).unwrap();
        assert_eq!(set.labels, [dir.path().join("set/labels.csv")], "its own file counts, though it says nothing");
    }

    #[test]
    fn the_nearest_labels_win() {
        let dir = folder(&[
            ("labels.csv", "file,label\nset/a.png,A\n"),
            ("set/a.png", ""),
            ("set/labels.csv", "file,label\na.png,C\n"),
        ]);
        assert_eq!(labels(&Dataset::open(dir.path().join("set")).unwrap()), ["C"]);
        // The data set's own file is the word on every image that it names.
        assert_eq!(labels(&Dataset::open(dir.path()).unwrap()), ["A"]);
    }
}
