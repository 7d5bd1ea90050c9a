//! `cellgate data` as a user meets it.

use std::path::Path;
use std::process::{Command, Output};

fn cellgate(args: &[&str], dir: &Path) -> Output {
    let program = env!("CARGO_BIN_EXE_cellgate");
    Command::new(program).args(args).current_dir(dir).env_remove("CELLGATE_DATA").output().unwrap()
}

fn image(path: &Path, width: u32, height: u32) {
    image::GrayImage::from_pixel(width, height, image::Luma([90])).save(path).unwrap();
}

#[test]
fn show_counts_labels_types_sizes_and_masks() {
    let dir = tempfile::tempdir().unwrap();
    let set = dir.path().join("set");
    std::fs::create_dir_all(set.join("masks")).unwrap();
    image(&set.join("a.png"), 30, 20);
    image(&set.join("b.png"), 30, 20);
    image(&set.join("c.tiff"), 8, 9);
    image(&set.join("masks/b.png"), 30, 20);
    std::fs::write(set.join("d.pgm"), "no image").unwrap();
    let labels = "file,label,type,mask\na.png,A,,\nb.png,C,crack,masks/b.png\nd.pgm,A,,\n";
    std::fs::write(set.join("labels.csv"), labels).unwrap();
    let output = cellgate(&["data", "show", "set", "--json"], dir.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((json["images"].as_u64(), json["masks"].as_u64()), (Some(4), Some(1)));
    let counts = serde_json::json!([
        { "label": "A", "kind": "", "images": 2 },
        { "label": "C", "kind": "crack", "images": 1 },
        { "label": "none", "kind": "", "images": 1 },
    ]);
    assert_eq!(json["counts"], counts);
    let sizes = serde_json::json!([
        { "width": 8, "height": 9, "images": 1 },
        { "width": 30, "height": 20, "images": 2 },
    ]);
    assert_eq!(json["sizes"], sizes);
    assert!(json["unreadable"][0].as_str().unwrap().starts_with("d.pgm: "));
    let text = String::from_utf8(cellgate(&["data", "show", "set"], dir.path()).stdout).unwrap();
    assert!(text.contains("4 images, 1 with a mask") && text.contains("unreadable: d.pgm"), "{text}");
}

#[test]
fn errors_name_the_file_and_leave_standard_output_empty() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("elpv.whl"), "other").unwrap();
    let cases: [(&[&str], &str); 4] = [
        (&["data", "show", "empty"], "the folder empty is empty"),
        (&["data", "show", "nowhere"], "cannot read nowhere: "),
        (&["data", "elpv", "--data-dir", "d", "--wheel", "elpv.whl"], "is not the published elpv-dataset==1.0.0.post1"),
        (&["data", "elpv", "--data-dir", "d", "--wheel", "gone.whl"], "cannot open the wheel gone.whl: "),
    ];
    for (args, said) in cases {
        let output = cellgate(args, dir.path());
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty() && stderr.contains(said), "{args:?}: {stderr}");
    }
    assert_eq!(std::fs::read_dir(dir.path().join("d")).unwrap().count(), 0, "nothing half stays");
}
