//! A set of images, with what is known about them.

mod known;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

pub use super::labels::Label;
use super::labels::{self, LabelsError};

/// Endings of image files, in lower case.
pub const IMAGE_ENDINGS: [&str; 6] = ["png", "tif", "tiff", "jpg", "jpeg", "pgm"];

/// The name of the label file in a data set's folder.
pub const LABELS_FILE: &str = "labels.csv";

/// Folders of defect masks are not images to be judged.
pub const MASKS_FOLDER: &str = "masks";

/// Images in a fixed order.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The folder that ids are relative to.
    pub root: PathBuf,
    /// The folder's or the file's own name.
    pub name: String,
    /// Never empty; sorted by id, or in the order of the list.
    pub items: Vec<Item>,
    /// The label files that speak of it: the one in `root` if it is there, and those around that name its images.
    pub labels: Vec<PathBuf>,
}

/// One image.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Where the image is.
    pub path: PathBuf,
    /// Its path relative to the data set's folder, `/` between folders: the same on every machine.
    pub id: String,
    /// What is known about the cell.
    pub label: Option<Label>,
    /// Mono or poly, or the kinds of defect.
    pub kind: Option<String>,
    /// The image whose bright pixels are defects.
    pub mask: Option<PathBuf>,
}

/// Why a data set could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The system refused.
    #[error("cannot read {path}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing in it at all.
    #[error("the folder {path} is empty; put PNG, TIFF, JPEG or PGM images into it")]
    EmptyFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Files, but no images.
    #[error("no image under {path}; PNG, TIFF, JPEG and PGM files are looked for (not hidden ones, nor in `masks`)")]
    NoImages {
        /// The folder.
        path: PathBuf,
    },
    /// A list without a line.
    #[error("the list {path} names no image; write one path a line")]
    EmptyList {
        /// The list.
        path: PathBuf,
    },
    /// A list that is not text.
    #[error("{path} is neither an image (PNG, TIFF, JPEG, PGM by its ending) nor a UTF-8 list with one path a line")]
    NotAList {
        /// The file.
        path: PathBuf,
    },
    /// A list names a file that is not there.
    #[error("{list}, line {line}: there is no file {path}")]
    ListedMissing {
        /// The list.
        list: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The missing file.
        path: PathBuf,
    },
    /// A list names a file twice.
    #[error("{list}: {file:?} is on line {first} and again on line {second}; keep one")]
    ListedTwice {
        /// The list.
        list: PathBuf,
        /// The file.
        file: String,
        /// The line that names it first.
        first: usize,
        /// The line that names it again.
        second: usize,
    },
    /// A name that cannot be an id.
    #[error("the file name {path:?} is not UTF-8; rename it")]
    NameNotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// Too deep, or too many files.
    #[error("{path}: folders nest deeper than {MAX_DEPTH}, or hold more than {MAX_ITEMS} images")]
    TooLarge {
        /// The folder.
        path: PathBuf,
    },
    /// The label file is malformed.
    #[error(transparent)]
    Labels(#[from] LabelsError),
    /// A label without its image.
    #[error("{labels}, line {line}: there is no image {file:?} in this data set; correct the name or remove the line")]
    LabelWithoutImage {
        /// The label file.
        labels: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The image.
        file: String,
    },
    /// A mask that is not there.
    #[error("{labels}, line {line}: there is no mask {path}")]
    MaskMissing {
        /// The label file.
        labels: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// The mask.
        path: PathBuf,
    },
    /// Labels are needed and not there.
    #[error("{missing} of {total} images of {name:?} have no label: {}; add them to {LABELS_FILE} (header `file,label`)", few(.first, *.missing))]
    Unlabelled {
        /// The data set.
        name: String,
        /// How many have none.
        missing: usize,
        /// How many images there are.
        total: usize,
        /// The first few.
        first: Vec<String>,
    },
}

/// Folders are walked to this depth.
pub const MAX_DEPTH: usize = 32;

/// More images than this in one data set are refused.
pub const MAX_ITEMS: usize = 10_000_000;

fn few(first: &[String], count: usize) -> String {
    let dots = if count > first.len() { ", …" } else { "" };
    first.join(", ") + dots
}

/// How many images of one label and type there are.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Count {
    /// The label as text, or `none`.
    pub label: String,
    /// The type, or empty.
    pub kind: String,
    /// Images.
    pub images: usize,
}

impl Dataset {
    /// Opens a folder (walked to its end; hidden files, links to folders and `masks/` are left out), a text file with
    /// one path a line (relative to it; blank lines and `#` comments are left out), or one image. A `labels.csv` in
    /// the folder, or beside the list or the image, gives the labels; for images that it does not name, one in their own
    /// folder or the one above.
    ///
    /// # Errors
    /// If there is no image, a file cannot be read, or the labels are malformed or do not fit the images.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DatasetError> {
        let path = path.as_ref();
        let read = |source| DatasetError::Read { path: path.to_path_buf(), source };
        let metadata = std::fs::metadata(path).map_err(read)?;
        let name = name_of(path);
        if metadata.is_dir() {
            let mut items = Vec::new();
            let entries = walk(path, "", 0, &mut items)?;
            if items.is_empty() {
                let path = path.to_path_buf();
                return Err(if entries == 0 {
                    DatasetError::EmptyFolder { path }
                } else {
                    DatasetError::NoImages { path }
                });
            }
            items.sort_by(|a, b| a.id.cmp(&b.id));
            let labels = known::tell(path, &mut items, true)?;
            return Ok(Self { root: path.to_path_buf(), name, items, labels });
        }
        let root = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let mut items = if is_image(path) {
            let id = path.file_name().and_then(|name| name.to_str());
            let id = id.ok_or_else(|| DatasetError::NameNotUtf8 { path: path.to_path_buf() })?;
            vec![Item::new(path.to_path_buf(), id.to_string())]
        } else {
            read_list(path, &root, metadata.len())?
        };
        let labels = known::tell(&root, &mut items, false)?;
        Ok(Self { root, name, items, labels })
    }

    /// Refuses a data set in which any image has no label.
    ///
    /// # Errors
    /// [`DatasetError::Unlabelled`], with the count and the first five.
    pub fn require_labels(&self) -> Result<(), DatasetError> {
        let mut unlabelled = self.items.iter().filter(|item| item.label.is_none()).map(|item| item.id.clone());
        let first: Vec<String> = unlabelled.by_ref().take(5).collect();
        if first.is_empty() {
            return Ok(());
        }
        let missing = first.len() + unlabelled.count();
        Err(DatasetError::Unlabelled { name: self.name.clone(), missing, total: self.items.len(), first })
    }

    /// Images for each label and type, in the order of the labels.
    #[must_use]
    pub fn counts(&self) -> Vec<Count> {
        let mut counts = BTreeMap::new();
        for item in &self.items {
            let key = (item.label.map_or(u64::MAX, |label| label.sort_key()), item.kind.clone().unwrap_or_default());
            counts.entry(key).or_insert((item.label, 0)).1 += 1;
        }
        let name = |label: Option<Label>| label.map_or_else(|| "none".to_string(), |label| label.to_string());
        counts.into_iter().map(|((_, kind), (label, images))| Count { label: name(label), kind, images }).collect()
    }
}

impl Item {
    /// An image of which nothing is known.
    #[must_use]
    pub fn new(path: PathBuf, id: String) -> Self {
        Self { path, id, label: None, kind: None, mask: None }
    }
}

/// Whether the name ends as an image's does.
#[must_use]
pub fn is_image(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|ending| IMAGE_ENDINGS.contains(&ending.as_str()))
}

fn name_of(path: &Path) -> String {
    let full = std::fs::canonicalize(path);
    let name = full.as_deref().unwrap_or(path).file_name();
    name.map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// Appends the images under `folder`; gives how many visible entries there were.
fn walk(folder: &Path, prefix: &str, depth: usize, items: &mut Vec<Item>) -> Result<usize, DatasetError> {
    if depth > MAX_DEPTH || items.len() > MAX_ITEMS {
        return Err(DatasetError::TooLarge { path: folder.to_path_buf() });
    }
    let read = |source| DatasetError::Read { path: folder.to_path_buf(), source };
    let mut entries = 0;
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let entry = entry.map_err(read)?;
        let path = entry.path();
        let name = entry.file_name();
        if name.as_encoded_bytes().first() == Some(&b'.') {
            continue;
        }
        entries += 1;
        let kind = entry.file_type().map_err(read)?;
        let descend = kind.is_dir() && name != MASKS_FOLDER;
        let judge = is_image(&path) && path.is_file();
        if !(descend || judge) {
            continue;
        }
        let Some(name) = name.to_str() else { return Err(DatasetError::NameNotUtf8 { path }) };
        if descend {
            walk(&path, &format!("{prefix}{name}/"), depth + 1, items)?;
        } else {
            items.push(Item::new(path, format!("{prefix}{name}")));
        }
    }
    Ok(entries)
}

fn read_list(list: &Path, root: &Path, bytes: u64) -> Result<Vec<Item>, DatasetError> {
    let not_a_list = || DatasetError::NotAList { path: list.to_path_buf() };
    if bytes > labels::MAX_BYTES {
        return Err(not_a_list());
    }
    let content = std::fs::read(list).map_err(|source| DatasetError::Read { path: list.to_path_buf(), source })?;
    let text = std::str::from_utf8(&content).map_err(|_| not_a_list())?;
    if text.contains('\0') {
        return Err(not_a_list());
    }
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut items = Vec::new();
    for (index, entry) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let entry = entry.trim();
        if entry.is_empty() || entry.starts_with('#') {
            continue;
        }
        let line = index + 1;
        let id = entry.strip_prefix("./").unwrap_or(entry).to_string();
        let path = root.join(entry);
        if !path.is_file() {
            return Err(DatasetError::ListedMissing { list: list.to_path_buf(), line, path });
        }
        if let Some(first) = seen.insert(id.clone(), line) {
            return Err(DatasetError::ListedTwice { list: list.to_path_buf(), file: id, first, second: line });
        }
        items.push(Item::new(path, id));
    }
    if items.is_empty() {
        return Err(DatasetError::EmptyList { path: list.to_path_buf() });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Class;

    /// A folder with these files; an image's content is not looked at here.
    pub(super) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        dir
    }

    fn ids(set: &Dataset) -> Vec<&str> {
        set.items.iter().map(|item| item.id.as_str()).collect()
    }

    #[test]
    fn a_folder_is_walked_in_order_without_hidden_files_and_masks() {
        let dir = folder(&[
            ("b.PNG", ""),
            ("a/z.tiff", ""),
            ("a/y.jpeg", ""),
            ("a.pgm", ""),
            (".hidden.png", ""),
            (".git/x.png", ""),
            ("masks/b.png", ""),
            ("notes.txt", ""),
        ]);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!(ids(&set), ["a.pgm", "a/y.jpeg", "a/z.tiff", "b.PNG"]);
        assert!(set.items.iter().all(|item| item.path.is_file() && item.label.is_none()));
    }

    #[test]
    fn labels_types_and_masks_reach_their_images() {
        let labels = "file,label,type,mask\nb.png,C,crack,masks/b.png\na.png,A,,\n";
        let dir = folder(&[("a.png", ""), ("b.png", ""), ("masks/b.png", ""), ("labels.csv", labels)]);
        let set = Dataset::open(dir.path()).unwrap();
        assert_eq!(set.items[0].label, Some(Label::Class(Class::A)));
        assert_eq!(set.items[1].kind.as_deref(), Some("crack"));
        assert_eq!(set.items[1].mask.as_deref(), Some(dir.path().join("masks/b.png").as_path()));
        set.require_labels().unwrap();
        let counts: Vec<_> = set.counts().into_iter().map(|c| (c.label, c.kind, c.images)).collect();
        assert_eq!(counts, [("A".into(), String::new(), 1), ("C".into(), "crack".into(), 1)]);
    }

    #[test]
    fn a_list_and_a_single_image_take_the_labels_beside_them() {
        let labels = "file,label\na.png,0\nsub/b.png,1\n";
        let list = "# two of three\n\nsub/b.png\r\n./a.png\n";
        let dir = folder(&[("a.png", ""), ("sub/b.png", ""), ("list.txt", list), ("labels.csv", labels)]);
        let set = Dataset::open(dir.path().join("list.txt")).unwrap();
        assert_eq!(ids(&set), ["sub/b.png", "a.png"]);
        assert_eq!(set.items[0].label, Some(Label::Probability(1.0)));
        let one = Dataset::open(dir.path().join("a.png")).unwrap();
        assert_eq!((ids(&one), one.items[0].label), (vec!["a.png"], Some(Label::Probability(0.0))));
    }

    #[test]
    fn an_empty_folder_and_one_without_images_are_told_apart() {
        let error = Dataset::open(folder(&[]).path()).unwrap_err();
        assert!(matches!(error, DatasetError::EmptyFolder { .. }), "{error}");
        let error = Dataset::open(folder(&[("readme.md", "")]).path()).unwrap_err();
        assert!(matches!(error, DatasetError::NoImages { .. }), "{error}");
        let error = Dataset::open("no/such/folder").unwrap_err();
        assert!(matches!(error, DatasetError::Read { .. }) && error.to_string().contains("no/such/folder"), "{error}");
    }

    #[test]
    fn duplicate_names_in_the_labels_name_both_lines() {
        let dir = folder(&[("a.png", ""), ("labels.csv", "file,label\na.png,A\na.png,B\n")]);
        let error = Dataset::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("line 3") && error.contains("a.png"), "{error}");
    }

    #[test]
    fn a_label_or_mask_for_a_file_that_is_not_there_is_refused() {
        let dir = folder(&[("a.png", ""), ("labels.csv", "file,label\na.png,A\nb.png,B\n")]);
        let error = Dataset::open(dir.path()).unwrap_err();
        assert!(matches!(error, DatasetError::LabelWithoutImage { line: 3, .. }), "{error}");
        let dir = folder(&[("a.png", ""), ("labels.csv", "file,label,mask\na.png,A,masks/a.png\n")]);
        let error = Dataset::open(dir.path()).unwrap_err();
        assert!(matches!(error, DatasetError::MaskMissing { line: 2, .. }), "{error}");
    }

    #[test]
    fn missing_labels_are_counted_and_the_first_named() {
        let files: Vec<(String, &str)> = (0..8).map(|i| (format!("{i}.png"), "")).collect();
        let mut files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), *text)).collect();
        files.push(("labels.csv", "file,label\n3.png,A\n"));
        let set = Dataset::open(folder(&files).path()).unwrap();
        let error = set.require_labels().unwrap_err().to_string();
        assert!(error.contains("7 of 8") && error.contains("0.png, 1.png, 2.png, 4.png, 5.png, …"), "{error}");
    }

    #[test]
    fn bad_lists_are_refused() {
        let dir = folder(&[
            ("a.png", ""),
            ("gone.txt", "a.png\nb.png\n"),
            ("twice.txt", "a.png\n\n./a.png\n"),
            ("none", "#\n"),
        ]);
        std::fs::write(dir.path().join("binary"), [0xff, 0xfe, 0]).unwrap();
        let open = |name: &str| Dataset::open(dir.path().join(name)).unwrap_err();
        assert!(matches!(open("gone.txt"), DatasetError::ListedMissing { line: 2, .. }));
        assert!(matches!(open("twice.txt"), DatasetError::ListedTwice { first: 1, second: 3, .. }));
        assert!(matches!(open("none"), DatasetError::EmptyList { .. }));
        assert!(matches!(open("binary"), DatasetError::NotAList { .. }));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_not_utf8_is_refused_and_a_link_loop_does_no_harm() {
        use std::os::unix::ffi::OsStrExt;
        let dir = folder(&[("a.png", "")]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        assert_eq!(ids(&Dataset::open(dir.path()).unwrap()), ["a.png"]);
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"\xff.png")), "").unwrap();
        let error = Dataset::open(dir.path()).unwrap_err();
        assert!(matches!(error, DatasetError::NameNotUtf8 { .. }), "{error}");
    }
}
