//! `cellgate inspect` as a person runs it: verdicts, pictures and pages; bad images are INVALID, bad inputs errors before
//! the work begins, and nothing of either is ever a PASS.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use cellgate::backbone::ResNet18;
use cellgate::backbone::weights::safetensors::{self, About, Precision};
use cellgate::frame::Frame;
use cellgate::synth::{DefectKind, Generator, SynthConfig};
use image::{DynamicImage, ImageFormat};

const SIZE: usize = 240;

fn cellgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).args(arguments).output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with a small fitted model (`m.cgm`) and a batch of a good, a cracked and a dark-spotted cell.
fn fitted() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (good, model) = (path("good"), path("m.cgm"));
        let size = SIZE.to_string();
        let synth = ["synth", "-o", text(&good), "--count", "60", "--size", &size, "--class", "A", "--no-masks"];
        assert!(cellgate(&synth).status.success());
        let small = ["--size", "64", "--grid", "16", "-k", "8", "--holdout", "0.3"];
        let fit = cellgate(&[&["fit", text(&good), "-o", text(&model)], small.as_slice()].concat());
        assert!(fit.status.success(), "{}", String::from_utf8_lossy(&fit.stderr));
        let generator = Generator::new(SynthConfig { size: SIZE, ..SynthConfig::default() }, 0).unwrap();
        std::fs::create_dir(path("batch")).unwrap();
        let save = |frame: &Frame, name: &str| frame.save_png(path("batch").join(name)).unwrap();
        save(&Frame::decode_file(good.join("A000003.png"), &Default::default()).unwrap(), "good.png");
        save(&generator.with_defect(900, DefectKind::CrackCross).frame, "crack.png");
        save(&generator.with_defect(901, DefectKind::DarkSpot).frame, "spot.png");
        folder
    });
    folder.path()
}

fn model() -> PathBuf {
    fitted().join("m.cgm")
}

fn json(arguments: &[&str]) -> Vec<serde_json::Value> {
    let model = model();
    let output = cellgate(&[&["inspect", text(&model), "--json"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(lines.lines().all(|line| line.len() < 1024));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Fails before the work begins: status 1, no verdict, and a text that says all of `says`.
#[track_caller]
fn assert_fails(arguments: &[&str], says: &[&str]) {
    let output = cellgate(&[&["inspect"], arguments].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(output.stdout.is_empty());
    says.iter().for_each(|part| assert!(error.contains(part), "{error:?} does not say {part:?}"));
}

#[test]
fn without_a_driver_the_cpu_measures_unless_a_device_was_asked_for() {
    let (model, batch) = (model(), fitted().join("batch"));
    let inspect = |backend: &str| {
        let arguments = ["inspect", text(&model), text(&batch), "--json", "--backend", backend];
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
        command.args(arguments).env("CELLGATE_LIBCUDA", "no-such-libcuda.so").output().unwrap()
    };
    let judged = |output: &Output| String::from_utf8_lossy(&output.stdout).lines().count();
    for backend in ["auto", "cpu"] {
        let output = inspect(backend);
        assert!(output.status.success() && judged(&output) == 3, "{}", String::from_utf8_lossy(&output.stderr));
    }
    let output = inspect("cuda");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), judged(&output)), (Some(1), 0), "{error}");
    assert!(error.contains("the backend cuda was asked for") && error.contains("no-such-libcuda.so"), "{error}");
}

#[test]
fn cells_get_their_verdicts_in_order_with_all_fields() {
    let batch = fitted().join("batch");
    let cells = json(&[text(&batch), "--cell-mm", "210", "--threads", "3"]);
    let ids: Vec<&str> = cells.iter().map(|cell| cell["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["crack.png", "good.png", "spot.png"]);
    for cell in &cells {
        assert_eq!(cell.as_object().unwrap().len(), 20);
        assert!(cell["score"].is_f64() && cell["top"].is_f64() && cell["model"].as_str().unwrap().len() == 64);
        assert!(cell["total_us"].as_u64().unwrap() >= cell["backbone_us"].as_u64().unwrap());
        assert!(cell["reason"].is_null() && cell["detail"].is_null());
        for region in cell["regions"].as_array().unwrap() {
            let region: Vec<f64> = region.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            let [left, top, right, bottom, peak, area] = region[..] else { panic!("{region:?}") };
            assert!(0.0 <= left && left < right && right <= SIZE as f64, "{region:?}");
            assert!(0.0 <= top && top < bottom && bottom <= SIZE as f64, "{region:?}");
            assert!(peak > 0.0 && area > 0.0 && area <= 210.0 * 210.0);
        }
    }
    assert_eq!((&cells[1]["outcome"], &cells[1]["class"]), (&"PASS".into(), &"A".into()), "a cell of the fit");
    assert_eq!((&cells[2]["outcome"], &cells[2]["class"]), (&"REJECT".into(), &"C".into()), "a dark spot");
    assert!(!cells[2]["regions"].as_array().unwrap().is_empty());
}

#[test]
fn verdicts_do_not_depend_on_how_many_cells_are_in_flight() {
    let batch = fitted().join("batch");
    let scores = |streams: &str| {
        let cells = json(&[text(&batch), "--threads", "4", "--streams", streams]);
        cells.into_iter().map(|cell| cell["top"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let alone = scores("1");
    assert_eq!(alone.len(), 3);
    assert_eq!((&alone, &alone), (&scores("2"), &scores("3")));
}

#[test]
fn several_arguments_and_equal_names_are_kept_apart() {
    let (model, batch, good) = (model(), fitted().join("batch"), fitted().join("batch/good.png"));
    let cells = json(&[text(&good), text(&batch), text(&good)]);
    let ids: std::collections::BTreeSet<&str> = cells.iter().map(|cell| cell["id"].as_str().unwrap()).collect();
    assert_eq!((cells.len(), ids.len()), (5, 5), "{ids:?}");
    assert_eq!(cells[0]["score"], cells[4]["score"]);
    let output = cellgate(&["inspect", text(&model), text(&batch)]);
    let (lines, summary) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(lines.lines().count(), 3);
    assert!(lines.lines().nth(1).unwrap().starts_with("good.png   PASS    A  0."), "{lines}");
    assert!(summary.contains("3 cells in ") && summary.contains("1 PASS A"), "{summary}");
}

#[test]
fn the_status_tells_of_rejects_only_where_asked() {
    let (model, batch) = (model(), fitted().join("batch"));
    let (good, spot) = (batch.join("good.png"), batch.join("spot.png"));
    let status = |image: &Path| cellgate(&["inspect", text(&model), text(image), "--fail-on-reject"]).status.code();
    assert_eq!((status(&good), status(&spot)), (Some(0), Some(3)));
    assert_eq!(cellgate(&["inspect", text(&model), text(&spot)]).status.code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_is_no_pass_where_rejects_count() {
    let (model, good) = (model(), fitted().join("good"));
    let status = |more: &[&str]| {
        let arguments = [&["inspect", text(&model), text(&good), "--json"], more].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = status(&["--fail-on-reject"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("stopped after 0 of 60"), "{said}");
    assert_eq!(status(&[]).0, Some(0));
}

#[test]
fn pictures_and_page_are_written_whole() {
    let (model, batch, out) = (model(), fitted().join("batch"), tempfile::tempdir().unwrap());
    let (overlays, page) = (out.path().join("heat"), out.path().join("page.html"));
    let output =
        cellgate(&["inspect", text(&model), text(&batch), "--overlay", text(&overlays), "--report", text(&page)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut names: Vec<_> = std::fs::read_dir(&overlays).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["crack.overlay.png", "good.overlay.png", "spot.overlay.png"]);
    let coloured = |name: &str| {
        let picture = image::open(overlays.join(name)).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (64, 64));
        picture.pixels().filter(|p| p[0] > p[2].saturating_add(20)).count()
    };
    assert_eq!(coloured("good.overlay.png"), 0, "a good cell stays clear");
    assert!(coloured("spot.overlay.png") > 20);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.ends_with("</html>\n") && html.matches("<figure class=tile>").count() == 3);
    assert!(html.find("spot.png").unwrap() < html.find("good.png").unwrap(), "the worst come first");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 2, "no temporary file stays");
}

fn png(image: &DynamicImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), ImageFormat::Png).unwrap();
    bytes
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |c, b| (0..8).fold(c ^ u32::from(*b), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1))))
}

/// The PNG of a small picture with another size in its header, checksum and all.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = png(&image::GrayImage::new(8, 8).into());
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let sum = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

#[test]
fn bad_images_are_invalid_with_a_reason_and_stop_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let good = std::fs::read(fitted().join("batch/good.png")).unwrap();
    let flat = |side: u32, grey: u8| png(&image::GrayImage::from_pixel(side, side, image::Luma([grey])).into());
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        ("black.png", flat(SIZE as u32, 0), &["no-cell"]),
        ("empty.png", Vec::new(), &["unreadable"]),
        ("huge.png", claiming(20_000, 20_000), &["unreadable"]),
        ("lying.png", claiming(8000, 7000), &["unreadable"]),
        ("one.png", flat(1, 128), &["frame-too-small"]),
        ("text.png", b"this is no image".to_vec(), &["unreadable"]),
        ("truncated.png", good[..good.len() / 2].to_vec(), &["unreadable"]),
        ("white.png", flat(SIZE as u32, 255), &["uniform", "cropped", "saturated"]),
        ("zz-good.png", good.clone(), &[]),
    ];
    for (name, bytes, _) in &cases {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let overlays = folder.path().join("masks");
    let cells = json(&[text(folder.path()), "--overlay", text(&overlays)]);
    assert_eq!(cells.len(), cases.len());
    for (cell, (name, _, reasons)) in cells.iter().zip(&cases) {
        assert_eq!(cell["id"], *name);
        if reasons.is_empty() {
            assert_eq!(cell["outcome"], "PASS", "the cell after the bad ones");
            continue;
        }
        assert_eq!((&cell["outcome"], &cell["class"], &cell["score"]), (&"INVALID".into(), &().into(), &().into()));
        let reason = cell["reason"].as_str().unwrap();
        assert!(reasons.contains(&reason), "{name}: {reason}");
        assert!(!cell["detail"].as_str().unwrap().is_empty());
    }
    assert!(cells[2]["detail"].as_str().unwrap().contains("20000×20000"), "{}", cells[2]["detail"]);
    assert_eq!(std::fs::read_dir(overlays).unwrap().count(), 1, "only the judged cell has a picture");
}

#[test]
fn models_that_do_not_fit_are_refused_before_the_work() {
    let (model, batch, folder) = (model(), fitted().join("batch"), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    let bytes = std::fs::read(&model).unwrap();
    for (name, length) in
        [("empty.cgm", 0), ("head.cgm", 40), ("half.cgm", bytes.len() / 2), ("short.cgm", bytes.len() - 1)]
    {
        std::fs::write(path(name), &bytes[..length]).unwrap();
        assert_fails(&[text(&path(name)), text(&batch)], &[name]);
    }
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 4;
    std::fs::write(path("flipped.cgm"), flipped).unwrap();
    assert_fails(&[text(&path("flipped.cgm")), text(&batch)], &["flipped.cgm"]);
    assert_fails(&[text(&path("none.cgm")), text(&batch)], &["none.cgm", "No such file"]);

    // The built-in weights but for one bias.
    let embedded = ResNet18::embedded().unwrap();
    let mut convs = embedded.convs().to_vec();
    convs[7].bias[3] += 1.0;
    let about = About { name: "other".into(), provenance: "a test".into() };
    let changed = ResNet18::from_convs(convs).unwrap();
    let (weights, changed) = safetensors::write(&changed, Precision::F32, &about).unwrap();
    let other = path("other.safetensors");
    std::fs::write(&other, weights).unwrap();
    let (built_in, given) = (embedded.identity().to_string(), changed.identity().to_string());
    assert_ne!(built_in, given);
    assert_fails(&[text(&model), text(&batch), "--backbone", text(&other)], &[&built_in, &given, "--backbone"]);
}

#[test]
fn inputs_and_outputs_are_checked_before_the_work() {
    let (model, batch, folder) = (model(), fitted().join("batch"), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("empty")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    let model = text(&model);
    assert_fails(&[model, text(&path("empty"))], &["empty", "PNG, TIFF, JPEG or PGM"]);
    assert_fails(&[model, text(&batch), text(&path("none"))], &["none"]);
    let inside = path("file/heat");
    assert_fails(&[model, text(&batch), "--overlay", text(&inside)], &["file/heat"]);
    assert_fails(&[model, text(&batch), "--overlay", text(&path("file"))], &["file"]);
    let nowhere = path("none/page.html");
    assert_fails(&[model, text(&batch), "--report", text(&nowhere)], &["none/page.html", "cannot be written"]);
    assert_fails(&[model, text(&batch), "--report", text(&path("empty"))], &["empty", "folder"]);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing was made");
}
