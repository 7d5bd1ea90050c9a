//! `labels.csv`: what is known about each image.
//!
//! Two forms are read. Ours has a header, `file,label[,type[,mask]]` in any order, other columns being ignored, with
//! quotes, CRLF and a byte-order mark as spreadsheets write them; a label is `A`, `B`, `C`, a defect probability in
//! [0, 1], or empty. ELPV's has no header and whitespace between the columns: `images/cell0001.png  1.0  mono`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::verdict::Class;

/// What is known about a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// The experts' probability that the cell is defective, in [0, 1] (ELPV: 0, 1/3, 2/3, 1).
    Probability(f32),
    /// The production class.
    Class(Class),
}

impl Label {
    /// Whether the cell is good beyond doubt: p = 0, or class A. Only such cells feed the statistics.
    #[must_use]
    pub fn is_good(&self) -> bool {
        match *self {
            Self::Probability(p) => p == 0.0,
            Self::Class(class) => class == Class::A,
        }
    }

    /// How grave it is: 0, 1, 2 for classes A, B, C; 0 for p = 0, 1 below 1/2, 2 below 1, 3 for p = 1.
    #[must_use]
    pub fn severity(&self) -> usize {
        match *self {
            Self::Class(class) => class as usize,
            Self::Probability(p) => usize::from(p > 0.0) + usize::from(p >= 0.5) + usize::from(p >= 1.0),
        }
    }

    /// The production class that it stands for: a probability of 0 is A, one below 1/2 is B, any other is C.
    #[must_use]
    pub fn class(&self) -> Class {
        match (*self, self.severity()) {
            (Self::Class(class), _) => class,
            (_, 0) => Class::A,
            (_, 1) => Class::B,
            _ => Class::C,
        }
    }

    /// Reads `A`, `B`, `C` or a number in [0, 1].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "A" | "a" => Some(Self::Class(Class::A)),
            "B" | "b" => Some(Self::Class(Class::B)),
            "C" | "c" => Some(Self::Class(Class::C)),
            _ => text.parse().ok().filter(|p| (0.0..=1.0).contains(p)).map(Self::Probability),
        }
    }

    /// A total order for tables: classes first (A, B, C), then probabilities, rising.
    #[must_use]
    pub fn sort_key(&self) -> u64 {
        match *self {
            Self::Class(class) => class as u64,
            // Non-negative floats order as their bits do.
            Self::Probability(p) => 16 + u64::from(p.max(0.0).to_bits()),
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Class(class) => write!(f, "{class:?}"),
            Self::Probability(p) if (p - 1.0 / 3.0).abs() < 0.005 => f.write_str("1/3"),
            Self::Probability(p) if (p - 2.0 / 3.0).abs() < 0.005 => f.write_str("2/3"),
            Self::Probability(p) => write!(f, "{p}"),
        }
    }
}

/// One line of a label file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Line number, from 1.
    pub line: usize,
    /// The image, relative to the label file's folder, `/` between folders.
    pub file: String,
    /// Empty in the file: none.
    pub label: Option<Label>,
    /// Mono or poly, or the kinds of defect.
    pub kind: Option<String>,
    /// The defect mask, relative to the label file's folder.
    pub mask: Option<String>,
}

/// Why a label file was refused.
#[derive(Debug, thiserror::Error)]
pub enum LabelsError {
    /// The file could not be read.
    #[error("cannot read the labels {path}")]
    Read {
        /// The label file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is larger than any label file can be.
    #[error("the labels {path} have {bytes} bytes; at most {MAX_BYTES} are read")]
    TooLarge {
        /// The label file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A byte that is not UTF-8.
    #[error("{path}, line {line}: not UTF-8 text; save the file as UTF-8")]
    NotUtf8 {
        /// The label file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// No header with the two columns that must be there.
    #[error("{path}: the first line must name the columns `file` and `label` (also `type`, `mask`), but is {found:?}")]
    Header {
        /// The label file.
        path: PathBuf,
        /// The first line.
        found: String,
    },
    /// A line with too few columns, or a quote that is not closed.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The label file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A label that is neither a class nor a probability.
    #[error("{path}, line {line}: {found:?} is no label; write A, B, C or a number from 0 to 1")]
    Label {
        /// The label file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// A path that leads out of the data set.
    #[error("{path}, line {line}: {found:?} is not a path inside the data set's folder")]
    Path {
        /// The label file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What stands there.
        found: String,
    },
    /// The same file on two lines.
    #[error("{path}: {file:?} is named on line {first} and again on line {second}; keep one")]
    Duplicate {
        /// The label file.
        path: PathBuf,
        /// The image.
        file: String,
        /// The line that names it first.
        first: usize,
        /// The line that names it again.
        second: usize,
    },
}

/// Label files beyond this size are refused.
pub const MAX_BYTES: u64 = 256 << 20;

/// Reads a label file.
///
/// # Errors
/// If it cannot be read, is no UTF-8, has no header, or any line is malformed or names a file again.
pub fn read(path: &Path) -> Result<Vec<Row>, LabelsError> {
    let failed = |source| LabelsError::Read { path: path.to_path_buf(), source };
    let bytes = std::fs::metadata(path).map_err(failed)?.len();
    if bytes > MAX_BYTES {
        return Err(LabelsError::TooLarge { path: path.to_path_buf(), bytes });
    }
    parse(&std::fs::read(path).map_err(failed)?, path)
}

/// Reads the text of a label file; `path` is for the messages.
///
/// # Errors
/// As for [`read`].
pub fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Row>, LabelsError> {
    let text = std::str::from_utf8(bytes).map_err(|error| LabelsError::NotUtf8 {
        path: path.to_path_buf(),
        line: 1 + bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count(),
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = if is_elpv(text) { parse_elpv(text, path)? } else { parse_csv(text, path)? };
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(rows.len());
    for row in &rows {
        if let Some(first) = seen.insert(&row.file, row.line) {
            return Err(LabelsError::Duplicate {
                path: path.to_path_buf(),
                file: row.file.clone(),
                first,
                second: row.line,
            });
        }
    }
    Ok(rows)
}

/// Whether the first line is ELPV's: a file, a number and perhaps a type, with blanks between.
fn is_elpv(text: &str) -> bool {
    let Some(line) = text.lines().find(|line| !line.trim().is_empty()) else { return false };
    let mut fields = line.split_whitespace();
    !line.contains(',') && fields.next().is_some() && fields.next().is_some_and(|p| p.parse::<f32>().is_ok())
}

fn parse_elpv(text: &str, path: &Path) -> Result<Vec<Row>, LabelsError> {
    let mut rows = Vec::new();
    for (index, content) in text.lines().enumerate() {
        let line = index + 1;
        let fields: Vec<&str> = content.split_whitespace().collect();
        let (file, probability, kind) = match fields[..] {
            [] => continue,
            [file, probability] => (file, probability, None),
            [file, probability, kind] => (file, probability, Some(kind.to_string())),
            _ => {
                let problem = format!("expected `file  probability  type`, found {} fields", fields.len());
                return Err(LabelsError::Line { path: path.to_path_buf(), line, problem });
            }
        };
        rows.push(Row {
            line,
            file: inside(file, line, path)?,
            label: label(probability, line, path)?,
            kind,
            mask: None,
        });
    }
    Ok(rows)
}

fn parse_csv(text: &str, path: &Path) -> Result<Vec<Row>, LabelsError> {
    let mut reader = Csv { rest: text, line: 1 };
    let problem = |line, problem: &str| LabelsError::Line { path: path.to_path_buf(), line, problem: problem.into() };
    let header = match reader.record() {
        Some((line, fields)) => fields.map_err(|p| problem(line, p))?,
        None => Vec::new(),
    };
    let column = |name: &str| header.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
    let (Some(file), Some(value)) = (column("file"), column("label")) else {
        return Err(LabelsError::Header {
            path: path.to_path_buf(),
            found: header.join(",").chars().take(80).collect(),
        });
    };
    let (kind, mask) = (column("type"), column("mask"));
    let mut rows = Vec::new();
    while let Some((line, fields)) = reader.record() {
        let fields = fields.map_err(|p| problem(line, p))?;
        if fields.iter().all(|field| field.trim().is_empty()) {
            continue;
        }
        let get = |index: Option<usize>| index.and_then(|i| fields.get(i)).map_or("", |field| field.trim());
        if get(Some(file)).is_empty() {
            return Err(problem(line, "no file name"));
        }
        if value >= fields.len() {
            return Err(problem(line, "too few columns: no label (leave it empty, but keep the comma)"));
        }
        let kind = get(kind);
        let mask = get(mask);
        rows.push(Row {
            line,
            file: inside(get(Some(file)), line, path)?,
            label: label(get(Some(value)), line, path)?,
            kind: (!kind.is_empty()).then(|| kind.to_string()),
            mask: if mask.is_empty() { None } else { Some(inside(mask, line, path)?) },
        });
    }
    Ok(rows)
}

fn label(text: &str, line: usize, path: &Path) -> Result<Option<Label>, LabelsError> {
    if text.is_empty() {
        return Ok(None);
    }
    Label::parse(text).map(Some).ok_or_else(|| LabelsError::Label {
        path: path.to_path_buf(),
        line,
        found: text.chars().take(40).collect(),
    })
}

/// A relative path without `.`; refuses `..`, roots and empty names.
fn inside(text: &str, line: usize, path: &Path) -> Result<String, LabelsError> {
    let parts: Vec<&str> = text.split('/').filter(|part| *part != ".").collect();
    if parts.is_empty() || parts.iter().any(|part| part.is_empty() || *part == "..") || text.contains('\0') {
        let found = text.chars().take(80).collect();
        return Err(LabelsError::Path { path: path.to_path_buf(), line, found });
    }
    Ok(parts.join("/"))
}

/// A reader of RFC 4180 records: quoted fields may hold commas, doubled quotes and line breaks.
struct Csv<'a> {
    rest: &'a str,
    line: usize,
}

impl Csv<'_> {
    /// The next record and the line where it starts.
    fn record(&mut self) -> Option<(usize, Result<Vec<String>, &'static str>)> {
        if self.rest.is_empty() {
            return None;
        }
        let start = self.line;
        let mut fields = vec![String::new()];
        let (mut quoted, mut closed) = (false, false);
        let mut chars = self.rest.char_indices().peekable();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            let field = fields.last_mut().expect("a record has at least one field");
            match c {
                '"' if quoted => {
                    if chars.next_if(|&(_, c)| c == '"').is_some() {
                        field.push('"');
                    } else {
                        (quoted, closed) = (false, true);
                    }
                }
                '\n' if !quoted => {
                    end = at + 1;
                    break;
                }
                '\r' if !quoted && chars.peek().is_none_or(|&(_, c)| c == '\n') => {}
                ',' if !quoted => {
                    closed = false;
                    fields.push(String::new());
                }
                '"' if field.is_empty() && !closed => quoted = true,
                ' ' | '\t' if closed => {}
                _ if closed => return self.give_up(start, "text after a closing quote"),
                _ => {
                    self.line += usize::from(c == '\n');
                    field.push(c);
                }
            }
        }
        if quoted {
            return self.give_up(start, "a quote is opened and never closed");
        }
        self.rest = &self.rest[end..];
        self.line += 1;
        Some((start, Ok(fields)))
    }

    fn give_up(&mut self, line: usize, problem: &'static str) -> Option<(usize, Result<Vec<String>, &'static str>)> {
        self.rest = "";
        Some((line, Err(problem)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rows(text: &str) -> Result<Vec<Row>, LabelsError> {
        parse(text.as_bytes(), Path::new("labels.csv"))
    }

    fn message(text: &str) -> String {
        rows(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn reads_what_spreadsheets_write() {
        let text = "\u{feff}file,label,type,mask\r\n\"a, \"\"one\"\".png\",C,\"crack, spot\",masks/a.png\r\n./b.png,0.5,,\r\n\r\nc.png,,,";
        let rows = rows(text).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0].file, "a, \"one\".png");
        assert_eq!(rows[0].label, Some(Label::Class(Class::C)));
        assert_eq!(rows[0].kind.as_deref(), Some("crack, spot"));
        assert_eq!(rows[0].mask.as_deref(), Some("masks/a.png"));
        assert_eq!((rows[1].file.as_str(), rows[1].label), ("b.png", Some(Label::Probability(0.5))));
        assert_eq!((rows[2].line, rows[2].label), (5, None));
    }

    #[test]
    fn columns_are_found_by_name_and_others_ignored() {
        let rows = rows("operator,label,file\nme,b,x/y.png\n").unwrap();
        assert_eq!((rows[0].file.as_str(), rows[0].label), ("x/y.png", Some(Label::Class(Class::B))));
    }

    #[test]
    fn reads_the_elpv_form() {
        let rows =
            rows("images/cell0001.png  1.0                 mono\nimages/cell0002.png  0.3333333333333333  poly\n");
        let rows = rows.unwrap();
        assert_eq!(rows[0].label, Some(Label::Probability(1.0)));
        assert_eq!(rows[1].label, Some(Label::Probability(1.0 / 3.0)));
        assert_eq!(rows[1].kind.as_deref(), Some("poly"));
        assert!(message("a.png 1.0 mono\nb.png 0.0 mono x").contains("line 2"));
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        assert!(message("file,label\na.png,A\nb.png,0\na.png,C\n").contains("line 2 and again on line 4"));
        assert!(message("file,label\n./a.png,A\na.png,C\n").contains("again on line 3"));
        assert!(message("file,label\na.png,1.5\n").contains("line 2: \"1.5\" is no label"));
        assert!(message("file,label\na.png,NaN\n").contains("no label"));
        assert!(message("name,label\na.png,1\n").contains("`file` and `label`"));
        assert!(message("").contains("`file` and `label`"));
        assert!(message("file,label\na.png\n").contains("too few columns"));
        assert!(message("file,label\n,A\n").contains("no file name"));
        assert!(message("file,label\n../a.png,A\n").contains("not a path inside"));
        assert!(message("file,label\n/etc/a.png,A\n").contains("not a path inside"));
        assert!(message("file,label\n\"a.png,A\n").contains("never closed"));
        assert!(message("file,label\n\"a\"b.png,A\n").contains("after a closing quote"));
        let error = parse(b"file,label\na.png,A\n\xff.png,B\n", Path::new("labels.csv")).unwrap_err();
        assert!(matches!(error, LabelsError::NotUtf8 { line: 3, .. }), "{error}");
    }

    #[test]
    fn labels_stand_for_classes_and_severities() {
        let of = |p: f32| (Label::Probability(p).severity(), Label::Probability(p).class());
        let (third, two) = (1.0 / 3.0, 2.0 / 3.0);
        assert_eq!([of(0.0), of(third)], [(0, Class::A), (1, Class::B)]);
        assert_eq!([of(0.5), of(two), of(1.0)], [(2, Class::C), (2, Class::C), (3, Class::C)]);
        assert_eq!([Class::A, Class::B, Class::C].map(|c| Label::Class(c).severity()), [0, 1, 2]);
        assert_eq!(Label::Class(Class::B).class(), Class::B);
    }

    #[test]
    fn labels_know_the_good_from_the_rest() {
        for (text, good) in [("A", true), ("B", false), ("C", false), ("0", true), ("1", false)] {
            assert_eq!(Label::parse(text).unwrap().is_good(), good, "{text}");
        }
        assert!(!Label::Probability(1.0 / 3.0).is_good());
        assert_eq!(Label::Probability(1.0 / 3.0).to_string(), "1/3");
        assert_eq!(Label::parse("D"), None);
        assert_eq!(Label::parse("-0.1"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Path::new("x"));
        }

        #[test]
        fn any_quoted_name_comes_back(name in "[a-z,\"\u{e9}]([a-z,\" \n\u{e9}]{0,10}[a-z,\"\u{e9}])?") {
            let text = format!("file,label\n\"{}\",A\n", name.replace('"', "\"\""));
            prop_assert_eq!(&rows(&text).unwrap()[0].file, &name);
        }
    }
}
