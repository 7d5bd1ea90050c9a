//! `cellgate bench` as a person runs it: what it counts, not how long it takes.

use std::process::Command;

fn json(arguments: &[&str]) -> serde_json::Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_cellgate")).args([&["bench", "--json"], arguments].concat()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn layers_are_counted_and_stop_at_the_last_stage() {
    let three = json(&["--layers", "--size", "64", "--stages", "1,3", "--runs", "3", "--threads", "2"]);
    let steps = three["steps"].as_array().unwrap();
    // conv1, four of stage 1, five each of stages 2 and 3; no map is copied out.
    assert_eq!(steps.len(), 15);
    assert_eq!(steps[0]["multiply_adds"], 32 * 32 * 49 * 64);
    for step in steps {
        assert!(step["performed"].as_u64() <= step["multiply_adds"].as_u64(), "{step}");
        assert!(step["map_bytes"].as_u64() > Some(0) && step["ms"].is_number() && step["roof_share"].is_number());
    }
    assert!(three["peak_gflops"].as_f64() > Some(0.0) && three["read_gbytes"].as_f64() > Some(0.0));
}

#[test]
fn a_model_is_timed_with_two_cells_in_flight_and_a_sensor_to_be_corrected() {
    let timed = json(&["--size", "64", "--runs", "6", "--threads", "2", "--streams", "2", "--correct"]);
    assert_eq!((&timed["streams"], &timed["cells"]), (&2.into(), &6.into()));
    for part in ["preprocess", "backbone", "projection", "distance", "heatmap", "all"] {
        let ms = &timed["ms"][part];
        assert!(ms["best"].as_f64() <= ms["median"].as_f64() && ms["median"].as_f64() <= ms["p99"].as_f64());
    }
    assert!(timed["cells_per_second"].as_f64() > Some(0.0));
}
