//! A model's way to a station as people walk it: keys, a bundle, signatures, installation, the way back.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn cellgate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.current_dir(folder).env("CELLGATE_UPDATE_STATE", folder.join("state")).args(arguments).output().unwrap()
}

fn done(folder: &Path, line: &str) -> String {
    let output = cellgate(folder, &line.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(folder: &Path, line: &str, why: &str) {
    let output = cellgate(folder, &line.split(' ').collect::<Vec<_>>());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(why), "{line}: {error}");
}

#[test]
fn a_signed_model_is_proven_put_in_force_and_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = common::small_model(folder, 64, 8, 4);
    std::fs::rename(&model, folder.join("m1.cgm")).unwrap();
    // The next model: the same statistics, another threshold.
    done(folder, "calibrate m1.cgm cells --overkill 0.2 -o m2.cgm");
    std::fs::create_dir(folder.join("golden")).unwrap();
    for cell in ["cell0001.pgm", "cell0002.pgm"] {
        std::fs::copy(folder.join("cells").join(cell), folder.join("golden").join(cell)).unwrap();
    }

    for name in ["anna", "ben"] {
        done(folder, &format!("bundle keygen {name}"));
        refused(folder, &format!("bundle keygen {name}"), "making");
        let mode = std::fs::metadata(folder.join(format!("{name}.key"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a secret key is for its owner alone");
    }
    done(folder, "bundle keys anna.pub ben.pub --threshold 2 -o keys.cgk");
    done(folder, "bundle sign keys.cgk --key anna.key");
    refused(folder, "update install keys.cgk --trust", "2 are needed");
    done(folder, "bundle sign keys.cgk --key ben.key");
    refused(folder, "update status", "trusts no keys yet");
    done(folder, "update install keys.cgk --trust");
    refused(folder, "update install keys.cgk --trust", "trusts keys already");

    done(folder, "bundle create m1.cgm --number 1 --golden golden -o v1.cgb --line line1");
    done(folder, "bundle sign v1.cgb --key anna.key");
    refused(folder, "bundle verify v1.cgb --keys keys.cgk", "1 by keys of the key set");
    refused(folder, "update install v1.cgb --line line1", "2 are needed");
    done(folder, "bundle sign v1.cgb --key ben.key");
    done(folder, "bundle verify v1.cgb --keys keys.cgk");
    refused(folder, "update install v1.cgb --line line2", "is for the line line1");
    assert!(done(folder, "update install v1.cgb --line line1").contains("2 golden frames"));
    done(folder, "update confirm");
    assert_eq!(std::fs::read(folder.join("state/a.cgm")).unwrap(), std::fs::read(folder.join("m1.cgm")).unwrap());

    done(folder, "bundle create m2.cgm --base m1.cgm --number 2 --golden golden -o v2.cgb");
    done(folder, "bundle sign v2.cgb --key ben.key");
    done(folder, "bundle sign v2.cgb --key anna.key");
    assert!(
        std::fs::metadata(folder.join("v2.cgb")).unwrap().len()
            < std::fs::metadata(folder.join("v1.cgb")).unwrap().len()
    );
    done(folder, "update install v2.cgb");
    assert_eq!(std::fs::read(folder.join("state/b.cgm")).unwrap(), std::fs::read(folder.join("m2.cgm")).unwrap());
    let status: serde_json::Value = serde_json::from_str(&done(folder, "update status --json")).unwrap();
    assert_eq!((&status["phase"], &status["slots"][1]["in-force"]), (&"probation".into(), &true.into()));
    assert_eq!(done(folder, "update rollback"), "went back to version 1: asked for\n");
    refused(folder, "update install v2.cgb", "version 2 has been here");
    refused(folder, "update rollback", "no whole model to go back to");
}

#[test]
fn a_model_that_judges_golden_frames_otherwise_is_not_put_in_force() {
    use cellgate::frame::{DecodeLimits, Frame};
    use cellgate::update::bundle::{
        Hash, Layout, Manifest, SecretKey, Software, Targets, assemble, pack_model, pack_whole,
    };
    use cellgate::update::prove::{Answer, Golden, encode};

    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let path = common::small_model(folder, 64, 8, 4);
    let model = cellgate::model::Model::open(&path).unwrap();
    let frame = Frame::decode_file(folder.join("cells/cell0001.pgm"), &DecodeLimits::default()).unwrap();
    let expected = Answer { says: "C".into(), score: Some(0.9) };
    let golden = encode(&[Golden { name: "cell0001".into(), frame, expected }]).unwrap();
    let parts = vec![pack_model(Layout { bytes: model.file(), sections: &[] }, None), pack_whole("golden", &golden)];
    let manifest = Manifest {
        product: "cellgate".into(),
        version: 1,
        backbone: model.header().backbone.0,
        targets: Targets { minimum_software: Software::own(), ..Targets::default() },
        created: 0,
        expires: u64::MAX,
        base: None::<Hash>,
        sections: vec![],
    };
    let (mut envelope, body) = assemble(manifest, parts).unwrap();
    done(folder, "bundle keygen anna");
    envelope.sign(&SecretKey::from_text(&std::fs::read_to_string(folder.join("anna.key")).unwrap()).unwrap());
    std::fs::write(folder.join("v1.cgb"), [envelope.to_bytes().unwrap(), body].concat()).unwrap();
    done(folder, "bundle keys anna.pub --threshold 1 -o keys.cgk");
    done(folder, "bundle sign keys.cgk --key anna.key");
    done(folder, "update install keys.cgk --trust");
    refused(folder, "update install v1.cgb", "`cell0001` was judged");
    assert!(done(folder, "update status").contains("slot A       empty"));
    refused(folder, "update install v1.cgb", "version 1 has been here");
}
