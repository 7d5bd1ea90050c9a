//! `cellgate camera`, on cameras that need no hardware.

use std::path::Path;
use std::process::{Command, Output};

use cellgate::frame::{DecodeLimits, Frame};

fn cellgate(folder: &Path, args: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate"))
        .args(["camera"].into_iter().chain(args.split_whitespace()))
        .current_dir(folder)
        .output()
        .unwrap()
}

fn works(folder: &Path, args: &str) -> String {
    let output = cellgate(folder, args);
    assert!(output.status.success(), "{args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn fails(folder: &Path, args: &str, words: &[&str]) {
    let output = cellgate(folder, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{args}");
    words.iter().for_each(|word| assert!(error.contains(word), "{args}: {word} is missing in {error}"));
}

fn read(folder: &Path, name: &str) -> Frame {
    Frame::decode_file(folder.join(name), &DecodeLimits::default()).unwrap()
}

/// How much neighbours in a row differ, of full scale.
fn roughness(frame: &Frame) -> f64 {
    let rows = (0..frame.height()).map(|y| frame.row(y));
    let steps = rows.flat_map(|row| row.windows(2).map(|pair| f64::from(pair[0].abs_diff(pair[1]))));
    steps.sum::<f64>() / frame.pixels().len() as f64 / f64::from(frame.white())
}

#[test]
fn a_sensor_is_calibrated_and_its_pictures_come_out_as_those_of_a_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let camera = "--synthetic --size 240 --white 4095 --pattern 1 --seed 7";
    let dark = works(folder, &format!("calibrate dark s.cgs {camera} --frames 24"));
    assert!(dark.contains("24 dark frames") && dark.contains("calibrate flat s.cgs"), "{dark}");
    let flat = works(folder, &format!("calibrate flat s.cgs {camera} --frames 24"));
    assert!(flat.contains("flat spread") && flat.contains(" hot, ") && flat.contains("bad pixels"), "{flat}");
    works(folder, &format!("snap {camera} -o raw.png"));
    let said = works(folder, &format!("snap {camera} --calibration s.cgs -o corrected.png"));
    assert!(said.contains("corrected.png: frame 0 of synthetic cells of seed 7, 240×240, white 4095"), "{said}");
    works(folder, "snap --synthetic --size 240 --white 4095 --seed 7 -o perfect.png");
    let [raw, corrected, perfect] =
        ["raw.png", "corrected.png", "perfect.png"].map(|name| roughness(&read(folder, name)));
    assert!(raw > 1.5 * perfect && corrected < 1.1 * perfect, "{raw} {corrected} {perfect}");
    fails(
        folder,
        "snap --synthetic --size 240 --calibration s.cgs -o x.png",
        &["240×240 with full scale 4095", "240×240 with full scale 255"],
    );
    assert!(!folder.join("x.png").exists());
}

#[test]
fn frames_of_a_folder_calibrate_too_and_broken_ones_are_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("dark")).unwrap();
    for i in 0..6_u16 {
        let pixels = (0..64 * 48).map(|p| 8 + (p + i) % 3).collect();
        Frame::from_pixels(64, 48, 255, pixels).save_png(folder.join(format!("dark/{i}.png"))).unwrap();
    }
    std::fs::write(folder.join("dark/0.png"), b"no image").unwrap();
    let said = works(folder, "calibrate dark d.cgs --replay dark");
    assert!(said.contains("5 dark frames of replay of dark (6 images), 64×48"), "{said}");
    let output = cellgate(folder, "snap --replay dark -o first.png");
    assert!(String::from_utf8_lossy(&output.stderr).contains("frame 0 of the camera is damaged"));
    assert_eq!(read(folder, "first.png"), read(folder, "dark/1.png"));
    fails(folder, "calibrate flat d.cgs --replay dark", &["too dim", "change the light"]);
}

#[test]
fn what_cannot_be_done_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fails(folder, "snap --device no-such-camera -o x.png", &["no-such-camera", "plug it in", "cellgate camera list"]);
    fails(folder, "snap --device /dev/null -o x.png", &["/dev/null", "no video device"]);
    fails(folder, "snap --replay none -o x.png", &["the folder none", "cannot be read"]);
    fails(folder, "snap --synthetic -o none/x.png", &["none/x.png"]);
    fails(folder, "snap --synthetic --size 3 -o x.png", &["64 to 2048"]);
    fails(folder, "snap --format y12 --shift 9 --mask 0xfff -o x.png", &["camera.shift", "0x0fff"]);
    fails(folder, "snap --format yuyv -o x.png", &["grey, y10"]);
    fails(folder, "calibrate flat none.cgs --synthetic", &["none.cgs", "record the dark frames first"]);
    fails(folder, "snap --replay a --synthetic -o x.png", &["cannot be used with"]);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    assert!(works(folder, "list").contains("/dev/video"));
}
