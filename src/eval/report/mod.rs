//! Self-contained HTML pages: one file, no script, nothing from elsewhere; legible in light, in dark and on paper.
//!
//! Whatever text comes from outside (file names, labels) passes [`escape`]. The page carries a content policy that
//! forbids every outside resource and every script, should anything get past it.

mod course;
mod evaluation;
mod inspection;
mod judged;
mod svg;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;

pub use evaluation::{EvalReport, Mistake, MistakeKind};
pub use inspection::{InspectReport, InspectedCell, Outcome, Region};
pub use judged::{CourseCurve, Example, Panel, Quadrant, Tile, VariantRow};
pub use svg::{Curve, Series, Threshold, svg_curve, svg_histogram, svg_roc};

use super::result::Setting;
use crate::hidden::shown;
use crate::whole_file;

/// An encoded picture, PNG or JPEG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture(pub Vec<u8>);

/// A cell's picture and the same with its heatmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictures {
    /// The cell as it was judged.
    pub image: Picture,
    /// The heatmap on it, with boxes.
    pub overlay: Picture,
}

/// Why a page could not be saved.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the report {path}; choose another place or free some space")]
pub struct SaveError {
    /// Where it was to go.
    pub path: PathBuf,
    /// What the system said.
    pub source: std::io::Error,
}

/// Writes the page whole or not at all.
///
/// # Errors
/// If the folder does not exist or cannot be written, or the disk is full; what was there before stays.
pub fn save(path: &Path, html: &str) -> Result<(), SaveError> {
    whole_file::write(path, &[html.as_bytes()]).map_err(|source| SaveError { path: path.to_path_buf(), source })
}

/// Text for HTML and attributes. Control characters and those that turn the direction of writing are made visible.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(shown(c)),
        }
    }
    out
}

impl Picture {
    /// As a `data:` address.
    fn address(&self) -> String {
        let kind = if self.0.starts_with(&[0xff, 0xd8]) { "jpeg" } else { "png" };
        format!("data:image/{kind};base64,{}", base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

/// Image and overlay side by side; `caption` is HTML.
fn tile(pictures: &Pictures, name: &str, caption: &str) -> String {
    let name = escape(name);
    format!(
        "<figure class=tile><div class=pair><img alt=\"{name}\" src=\"{}\"><img alt=\"{name}, heatmap\" src=\"{}\"></div>\
         <figcaption>{caption}</figcaption></figure>\n",
        pictures.image.address(),
        pictures.overlay.address(),
    )
}

/// A table; cells are HTML. The first column is text, the others are set to the right.
fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=wide><table><thead><tr>");
    for cell in head {
        let _ = write!(out, "<th>{}</th>", escape(cell));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{cell}</td>");
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
    out
}

/// Names and values, two by two.
fn settings(list: &[Setting]) -> String {
    let mut out = String::from("<dl class=settings>\n");
    for setting in list {
        let _ = writeln!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&setting.name), escape(&setting.value));
    }
    out.push_str("</dl>\n");
    out
}

/// A large figure with its name; `class` colours its edge.
fn card(class: &str, value: &str, name: &str, note: &str) -> String {
    format!(
        "<div class=\"card {class}\"><b>{}</b><span>{}</span><small>{}</small></div>\n",
        escape(value),
        escape(name),
        escape(note)
    )
}

/// 1,508 for 1508.
fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 cell", "2 cells".
fn cells(n: usize) -> String {
    format!("{} cell{}", count(n), if n == 1 { "" } else { "s" })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The whole page around `body`.
fn page(title: &str, subtitle: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n<meta name=color-scheme content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header><h1>{title}</h1>\n<p>{}</p></header>\n\
         <main>\n{body}</main>\n</body>\n</html>\n",
        escape(subtitle),
        title = escape(title),
    )
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_harmless() {
        assert_eq!(
            escape("<img src=x onerror=\"a('&')\">"),
            "&lt;img src=x onerror=&quot;a(&#39;&amp;&#39;)&quot;&gt;"
        );
        assert_eq!(escape("a\u{202e}gnp.exe\n"), "a\u{fffd}gnp.exe\u{fffd}");
        let page = page("</title><script>", "</p>", "");
        assert!(!page.contains("<script") && page.matches("</title>").count() == 1);
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1508, 1_234_567].map(count), ["0", "999", "1,508", "1,234,567"]);
        assert_eq!((cells(1), cells(2000)), ("1 cell".into(), "2,000 cells".into()));
    }

    #[test]
    fn pictures_say_what_they_are() {
        assert!(Picture(vec![0xff, 0xd8, 0xff]).address().starts_with("data:image/jpeg;base64,/9j/"));
        assert!(Picture(b"\x89PNG".to_vec()).address().starts_with("data:image/png;base64,iVBORw"));
    }

    #[test]
    fn a_page_is_saved_whole_or_the_old_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.html");
        save(&path, "one").unwrap();
        save(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        let error = save(&dir.path().join("no/folder.html"), "x").unwrap_err();
        assert!(error.to_string().contains("folder.html"));
        // A folder in the place of the file.
        std::fs::create_dir(dir.path().join("taken.html")).unwrap();
        assert!(save(&dir.path().join("taken.html"), "x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }
}
