//! The verdict as text for machines: one flat JSON object, keys in a fixed order, under 1 kB.

use std::fmt::{self, Write};

use super::{Outcome, Verdict};
use crate::backbone::Identity;
use crate::clock::Date;
use crate::hidden::is_hidden;

/// No payload is longer than this, in bytes.
pub const MAX_BYTES: usize = 1024;

/// Bytes of an id as it stands in the payload; the front of a longer one is cut, since file names end in what tells
/// them apart.
const MAX_ID: usize = 160;
/// The same from the station, whose cells have names of at most 64 bytes of which a quote or backslash takes two.
const MAX_STAMPED_ID: usize = 128;
/// Bytes of the sentence that explains an INVALID, as it stands in the payload.
const MAX_DETAIL: usize = 320;

/// What a payload says beside the verdict.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// The cell's name, if one is known.
    pub id: Option<&'a str>,
    /// What the station adds.
    pub stamp: Option<Stamp>,
    /// The model that judged it.
    pub model: Identity,
    /// Side of the model's heatmap.
    pub grid: usize,
    /// Side of a cell in millimetres, if known: regions then carry their area.
    pub cell_mm: Option<f64>,
}

/// What makes a verdict of the station unique, and when it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the station's start; see [`Key`](crate::outbox::Key).
    pub boot: u32,
    /// Number of the verdict.
    pub seq: u64,
    /// When the cell was exposed.
    pub time: Date,
    /// Microseconds from the exposure to the verdict.
    pub latency_us: u32,
}

/// Appends the verdict to `out` as one JSON object without a line end, at most [`MAX_BYTES`] long. Allocates nothing if
/// `out` has that much room.
///
/// Every key is always there, `null` where it does not apply, in this order: `id`, from the station also `boot`, `seq`,
/// `time` (of the exposure, RFC 3339 in UTC) and `latency_us` (from there to the verdict), then `outcome` (PASS, REJECT, INVALID),
/// `class` (A, B, C), `score` (0 to 1, always with a decimal point), `p_not_a` and `p_c` (the classifier's
/// probabilities that the cell is B or C, and that it is C, where the model has one that tells them apart), `reason` and `detail` (of an INVALID), `top`, `max`,
/// `mean` (Mahalanobis distances), `regions`, `regions_total`, `model` (64 hexadecimal digits), and the microseconds
/// `preprocess_us`, `backbone_us`, `distance_us`, `heatmap_us`,
/// `classifier_us`, `total_us`. A region is
/// `[left, top, right, bottom, peak]` in frame pixels and distance, highest peak first, with the area in mm² as a
/// sixth number where the side of a cell is known.
pub fn write_json(verdict: &Verdict, about: &About<'_>, out: &mut String) {
    // Writing into a string does not fail.
    let _ = write(verdict, about, out);
}

fn write(verdict: &Verdict, about: &About<'_>, out: &mut String) -> fmt::Result {
    out.push_str("{\"id\":");
    match about.id {
        Some(id) => text_end(id, if about.stamp.is_some() { MAX_STAMPED_ID } else { MAX_ID }, out)?,
        None => out.push_str("null"),
    }
    if let Some(Stamp { boot, seq, time, latency_us }) = about.stamp {
        write!(out, ",\"boot\":{boot},\"seq\":{seq},\"time\":\"{time}\",\"latency_us\":{latency_us}")?;
    }
    write!(out, ",\"outcome\":\"{}\",\"class\":", verdict.outcome.word())?;
    match verdict.outcome.class() {
        Some(class) => write!(out, "\"{class}\"")?,
        None => out.push_str("null"),
    }
    out.push_str(",\"score\":");
    number(verdict.score, 6, out)?;
    let probabilities = verdict.probabilities.unwrap_or_default();
    for (name, value) in [("p_not_a", probabilities.not_a), ("p_c", probabilities.c)] {
        write!(out, ",\"{name}\":")?;
        number(value, 4, out)?;
    }
    match &verdict.outcome {
        Outcome::Invalid(reason) => {
            write!(out, ",\"reason\":\"{}\",\"detail\":\"", reason.name())?;
            // Cut where it is too long.
            let _ = write!(Escaped { out, left: MAX_DETAIL }, "{reason}");
            out.push('"');
        }
        _ => out.push_str(",\"reason\":null,\"detail\":null"),
    }
    for (name, value) in [
        ("top", verdict.distances.map(|d| d.top)),
        ("max", verdict.distances.map(|d| d.max)),
        ("mean", verdict.distances.map(|d| d.mean)),
    ] {
        write!(out, ",\"{name}\":")?;
        number(value, 3, out)?;
    }
    out.push_str(",\"regions\":[");
    // There is no room for a sentence and regions, and those of an INVALID mean nothing.
    let listed = if matches!(verdict.outcome, Outcome::Invalid(_)) { 0 } else { usize::MAX };
    for (index, region) in verdict.regions.as_slice().iter().enumerate().take(listed) {
        let comma = if index > 0 { "," } else { "" };
        let [left, top, right, bottom] = frame_box(verdict, index, about.grid);
        write!(out, "{comma}[{left},{top},{right},{bottom},")?;
        number(Some(region.peak), 2, out)?;
        if let Some(side) = about.cell_mm {
            out.push(',');
            number(Some(area_mm2(region.area, about.grid, side) as f32), 1, out)?;
        }
        out.push(']');
    }
    write!(out, "],\"regions_total\":{},\"model\":\"{}\"", verdict.regions.total, about.model)?;
    let latency = &verdict.latency;
    write!(
        out,
        ",\"preprocess_us\":{},\"backbone_us\":{},\"distance_us\":{},\"heatmap_us\":{},\"classifier_us\":{},\"total_us\":{}}}",
        latency.preprocess_us,
        latency.backbone_us,
        latency.projection_us + latency.distance_us,
        latency.heatmap_us,
        latency.classifier_us,
        latency.total_us()
    )
}

/// The box `[left, top, right, bottom]` of region `index` in whole frame pixels around it; on the heatmap's grid where
/// the placement is not known.
///
/// # Panics
/// If there is no such region.
#[must_use]
pub fn frame_box(verdict: &Verdict, index: usize, grid: usize) -> [i32; 4] {
    let region = &verdict.regions.as_slice()[index];
    let on_grid = [region.left, region.top, region.right, region.bottom].map(f64::from);
    let [left, top, right, bottom] = match &verdict.placement {
        Some(placement) => placement.box_to_frame(grid, on_grid),
        None => on_grid,
    };
    // The cast saturates: no box is longer than five digits and a sign.
    let whole = |x: f64| (x as i32).clamp(-99_999, 99_999);
    [whole(left.floor()), whole(top.floor()), whole(right.ceil()), whole(bottom.ceil())]
}

/// Area in mm² of so many positions of the heatmap of a cell with this side in millimetres.
#[must_use]
pub fn area_mm2(positions: u32, grid: usize, cell_mm: f64) -> f64 {
    f64::from(positions) * (cell_mm / grid as f64).powi(2)
}

/// A number with a decimal point, or null; JSON knows no infinity.
fn number(value: Option<f32>, digits: usize, out: &mut String) -> fmt::Result {
    match value {
        Some(x) if x.is_finite() && x.abs() < 1e6 => write!(out, "{x:.digits$}"),
        Some(x) if x.is_finite() => write!(out, "{x:.3e}"),
        _ => out.write_str("null"),
    }
}

/// `text` as a JSON string, or its end after an ellipsis if it is too long.
fn text_end(text: &str, limit: usize, out: &mut String) -> fmt::Result {
    out.push('"');
    let end = tail(text, limit);
    let mut escaped = Escaped { out, left: limit };
    if end.len() < text.len() {
        escaped.write_char('…')?;
    }
    escaped.write_str(end)?;
    out.push('"');
    Ok(())
}

/// The end of `text` that fits into `limit` bytes once escaped, with room for an ellipsis if anything is cut.
fn tail(text: &str, limit: usize) -> &str {
    let cost = |c: char| if needs_escape(c) { escaped_len(c) } else { c.len_utf8() };
    if text.chars().map(cost).sum::<usize>() <= limit {
        return text;
    }
    let mut left = limit - '…'.len_utf8();
    let mut start = text.len();
    for (at, c) in text.char_indices().rev() {
        let Some(rest) = left.checked_sub(cost(c)) else { break };
        (left, start) = (rest, at);
    }
    &text[start..]
}

/// What JSON asks for, and what is harmless in JSON but not on a screen.
fn needs_escape(c: char) -> bool {
    is_hidden(c) || matches!(c, '"' | '\\')
}

fn escaped_len(c: char) -> usize {
    if matches!(c, '"' | '\\') { 2 } else { 6 }
}

/// Escapes what is written for a JSON string and stops, with an error, where `left` bytes are used up.
struct Escaped<'a> {
    out: &'a mut String,
    left: usize,
}

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            let escape = needs_escape(c);
            let length = if escape { escaped_len(c) } else { c.len_utf8() };
            self.left = self.left.checked_sub(length).ok_or(fmt::Error).inspect_err(|_| self.left = 0)?;
            match c {
                '"' | '\\' => {
                    self.out.push('\\');
                    self.out.push(c);
                }
                c if escape => write!(self.out, "\\u{:04x}", c as u32)?,
                c => self.out.push(c),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heatmap::{Analyser, Scores};
    use crate::preprocess::{Placement, Refusal};
    use crate::verdict::{Class, Invalid, Latency, Probabilities};

    const KEYS: [&str; 19] = [
        "id",
        "outcome",
        "class",
        "score",
        "p_not_a",
        "p_c",
        "reason",
        "detail",
        "top",
        "max",
        "mean",
        "regions",
        "regions_total",
        "model",
        "preprocess_us",
        "backbone_us",
        "distance_us",
        "heatmap_us",
        "classifier_us",
    ];

    fn about(id: &str) -> About<'_> {
        About { id: Some(id), stamp: None, model: Identity([0xab; 32]), grid: 64, cell_mm: None }
    }

    /// Text and parsed object, after the checks that every payload must stand.
    fn json(verdict: &Verdict, about: &About<'_>) -> (String, serde_json::Value) {
        let mut text = String::with_capacity(MAX_BYTES);
        write_json(verdict, about, &mut text);
        assert!(text.len() <= MAX_BYTES && text.capacity() == MAX_BYTES, "{} bytes: {text}", text.len());
        assert!(text.chars().all(|c| !c.is_control()), "{text}");
        let at: Vec<usize> =
            KEYS.iter().chain(&["total_us"]).map(|key| text.find(&format!("\"{key}\":")).expect(key)).collect();
        assert!(at.is_sorted(), "{text}");
        let value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        (text, value)
    }

    /// A verdict with as many regions as there can be, each number as long as it can be.
    fn longest() -> Verdict {
        let mut map = vec![0.0; 64 * 64];
        (0..12).for_each(|i| map[(i / 4) * 8 * 64 + (i % 4) * 8] = 987_654.3 + i as f32);
        let far = 16_000.0;
        let placement = Placement {
            quad: [[0.0; 2]; 4],
            size: 256,
            homography: [far / 256.0, 0.0, -123.0, 0.0, far / 256.0, -45.0, 0.0, 0.0, 1.0],
            brightness: 0.5,
            saturated: 0.0,
            sharpness: 0.1,
            edge_width: None,
            fill: 1.0,
            threshold: None,
        };
        let slow = u32::MAX / 6;
        Verdict {
            outcome: Outcome::Reject,
            score: Some(1.0),
            probabilities: Some(Probabilities { not_a: Some(1.0), c: Some(0.75) }),
            distances: Some(Scores { top: 123_456.7, max: f32::MAX, mean: 999_999.9 }),
            regions: Analyser::new(64, 0.0).regions(&map, 1.0),
            placement: Some(placement),
            latency: Latency {
                preprocess_us: slow,
                backbone_us: slow,
                projection_us: 0,
                distance_us: slow,
                heatmap_us: slow,
                classifier_us: slow,
            },
        }
    }

    #[test]
    fn keys_stand_in_order_and_scores_have_a_decimal_point() {
        let (text, value) = json(&longest(), &about("a/b.png"));
        assert!(text.starts_with("{\"id\":\"a/b.png\",\"outcome\":\"REJECT\",\"class\":\"C\",\"score\":1.000000,\"p_not_a\":1.0000,\"p_c\":0.7500,"));
        assert_eq!(value["regions"].as_array().unwrap().len(), 8);
        assert_eq!(value["regions_total"], 12);
        assert_eq!(value["model"], "ab".repeat(32));
        let region: Vec<f64> = value["regions"][0].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
        // Position (24, 16) of 64 spans rectified pixels 96 to 100 and 64 to 68, each 62.5 frame pixels wide.
        assert_eq!(region[..4], [5877.0, 3955.0, 6127.0, 4205.0]);
        let whole = Verdict { score: Some(0.0), outcome: Class::A.into(), ..longest() };
        assert!(json(&whole, &about("x")).0.contains("\"score\":0.000000,"));
    }

    #[test]
    fn eight_regions_with_areas_and_a_hostile_id_stay_below_a_kilobyte() {
        let about = About { cell_mm: Some(210.0), ..about("") };
        for c in ['"', '\\', '\n', '\u{0}', '\u{202e}', '\u{9b}', 'é', '😀', '/'] {
            for n in [1, 20, 200, 5000] {
                let id: String = std::iter::repeat_n(c, n).chain("end.png".chars()).collect();
                let (_, value) = json(&longest(), &About { id: Some(&id), ..about });
                let back = value["id"].as_str().unwrap();
                let cut = back.strip_prefix('…');
                assert!(cut.map_or(back == id, |end| id.ends_with(end) && end.ends_with("end.png")), "{back:?}");
                assert_eq!(cut.is_some(), n >= 200, "{back:?}");
            }
        }
        let (_, value) = json(&longest(), &About { id: Some("x"), ..about });
        assert_eq!(value["regions"][7].as_array().unwrap().len(), 6);
        let side = 210.0_f64 / 64.0;
        assert!((value["regions"][0][5].as_f64().unwrap() - side * side).abs() < 0.06);
    }

    /// The longest stamp there can be.
    fn stamp() -> Stamp {
        let time = Date::from_millis(253_402_300_799_999);
        Stamp { boot: u32::MAX, seq: u64::MAX, time, latency_us: u32::MAX }
    }

    #[test]
    fn a_stations_verdict_says_which_it_is_and_stays_below_a_kilobyte() {
        let id = "\"".repeat(64);
        let about = About { stamp: Some(stamp()), cell_mm: Some(210.0), ..about(&id) };
        let (text, value) = json(&longest(), &about);
        assert_eq!(value["id"], id);
        assert!(text.contains(
            "\",\"boot\":4294967295,\"seq\":18446744073709551615,\"time\":\"9999-12-31T23:59:59.999Z\",\
             \"latency_us\":4294967295,\"outcome\":\"REJECT\","
        ));
        let long = Verdict::invalid(Invalid::Unreadable("\u{202e}".repeat(300)));
        json(&Verdict { outcome: long.outcome.clone(), ..longest() }, &about);
        let (text, _) = json(&long, &About { id: None, ..about });
        assert!(text.starts_with("{\"id\":null,\"boot\":4294967295,"), "{text}");
    }

    /// Whether a value is what a schema says: the words that ours use, and no others.
    fn fits(value: &serde_json::Value, schema: &serde_json::Value, at: &str) {
        use serde_json::Value;
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(n) if n.is_u64() || n.is_i64() => "integer",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let is = |wanted: &Value| wanted == kind || wanted == "number" && kind == "integer";
        for (word, rule) in schema.as_object().unwrap() {
            match (word.as_str(), value) {
                ("type", _) => {
                    assert!(rule.as_array().map_or_else(|| is(rule), |any| any.iter().any(is)), "{at}: {value}")
                }
                ("enum", _) => assert!(rule.as_array().unwrap().contains(value), "{at}: {value}"),
                ("required", Value::Object(object)) => {
                    assert!(rule.as_array().unwrap().iter().all(|k| object.contains_key(k.as_str().unwrap())), "{at}");
                }
                ("properties", Value::Object(object)) => {
                    object.iter().for_each(|(key, value)| fits(value, &rule[key], &format!("{at}.{key}")));
                }
                ("additionalProperties", _) => assert_eq!(rule, false),
                ("items", Value::Array(items)) => items.iter().for_each(|item| fits(item, rule, at)),
                ("minItems", Value::Array(items)) => assert!(items.len() as u64 >= rule.as_u64().unwrap(), "{at}"),
                ("maxItems", Value::Array(items)) => assert!(items.len() as u64 <= rule.as_u64().unwrap(), "{at}"),
                ("maxLength", Value::String(text)) => {
                    assert!(text.chars().count() as u64 <= rule.as_u64().unwrap(), "{at}");
                }
                ("pattern", Value::String(text)) => assert!(matches(text, rule.as_str().unwrap()), "{at}: {text}"),
                ("minimum", Value::Number(n)) => assert!(n.as_f64() >= rule.as_f64(), "{at}: {n}"),
                ("maximum", Value::Number(n)) => assert!(n.as_f64() <= rule.as_f64(), "{at}: {n}"),
                ("title" | "description" | "$schema" | "$id" | "examples", _) => {}
                (
                    "required" | "properties" | "items" | "minItems" | "maxItems" | "maxLength" | "pattern" | "minimum"
                    | "maximum",
                    _,
                ) => {}
                (other, _) => panic!("the schema uses {other}, which this test does not check"),
            }
        }
    }

    /// The two patterns that the schema uses.
    fn matches(text: &str, pattern: &str) -> bool {
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        match pattern {
            "^[0-9a-f]{64}$" => text.len() == 64 && text.chars().all(hex),
            "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{3}Z$" => {
                text.len() == 24
                    && text
                        .chars()
                        .zip("0000-00-00T00:00:00.000Z".chars())
                        .all(|(c, shape)| if shape == '0' { c.is_ascii_digit() } else { c == shape })
            }
            other => panic!("the schema has a pattern that this test does not know: {other}"),
        }
    }

    #[test]
    fn every_payload_of_the_station_is_what_the_published_schema_says() {
        let schema = include_str!("../../docs/verdict.schema.json");
        let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        let about = About { stamp: Some(stamp()), ..about("W-11") };
        let pass = Verdict { outcome: Class::B.into(), regions: Default::default(), ..longest() };
        let unjudged = Verdict::invalid(Invalid::Frame(Refusal::Dim { mean: 0.01, limit: 0.03 }));
        let fresh = Verdict { probabilities: None, score: Some(f32::NAN), ..longest() };
        for verdict in [longest(), pass, unjudged, fresh] {
            for about in [about, About { id: None, cell_mm: Some(157.0), ..about }] {
                let (text, value) = json(&verdict, &about);
                fits(&value, &schema, "verdict");
                // The schema names every key, in the order in which they stand.
                let at = |key: &str| text.find(&format!("\"{key}\":")).expect("the key is in the payload");
                let named = schema["required"].as_array().unwrap();
                assert!(named.iter().map(|key| at(key.as_str().unwrap())).is_sorted());
                assert_eq!(named.len(), value.as_object().unwrap().len());
            }
        }
    }

    #[test]
    fn an_invalid_cell_has_a_reason_and_no_numbers() {
        let reason = Invalid::Frame(Refusal::Dim { mean: 0.01, limit: 0.03 });
        let (_, value) = json(&Verdict::invalid(reason), &about("dark.png"));
        assert_eq!((&value["outcome"], &value["reason"]), (&"INVALID".into(), &"dim".into()));
        assert!(value["detail"].as_str().unwrap().contains("0.0100"));
        assert!(["class", "score", "p_not_a", "p_c", "top", "max", "mean"].iter().all(|key| value[key].is_null()));
        assert!(value["regions"].as_array().unwrap().is_empty());
        let long = Invalid::Unreadable("\"\n\u{202e}é".repeat(300));
        let (_, value) = json(&Verdict::invalid(long), &about("x"));
        assert!(value["detail"].as_str().unwrap().starts_with("\"\n\u{202e}é\"\n"));
    }

    #[test]
    fn numbers_that_json_does_not_know_become_null() {
        let odd = Verdict {
            score: Some(f32::NAN),
            distances: Some(Scores { top: f32::INFINITY, max: 1e30, mean: 0.0 }),
            ..longest()
        };
        let (text, value) = json(&odd, &about("x"));
        assert!(value["score"].is_null() && value["top"].is_null());
        assert!(text.contains("\"max\":1.000e30,\"mean\":0.000,"), "{text}");
    }
}
