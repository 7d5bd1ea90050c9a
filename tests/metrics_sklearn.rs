//! The metrics against scikit-learn's, on the same scores.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use cellgate::eval::folds;
use cellgate::eval::metrics::{Confusion, Ranking};
use cellgate::sampling;

const SCRIPT: &str = r#"
import json, sys
from sklearn import metrics as m
out = []
for case in json.load(sys.stdin):
    s, t, th = case["scores"], case["targets"], case["threshold"]
    d = [x >= th for x in s]
    fpr, tpr, _ = m.roc_curve(t, s, drop_intermediate=False)
    p, r, _ = m.precision_recall_curve(t, s)
    tn, fp, fn, tp = m.confusion_matrix(t, d, labels=[False, True]).ravel()
    out.append(dict(
        auroc=m.roc_auc_score(t, s), aupr=m.average_precision_score(t, s),
        figures=[m.accuracy_score(t, d), m.precision_score(t, d, zero_division=0), m.recall_score(t, d), m.f1_score(t, d)],
        confusion=[int(tp), int(fp), int(fn), int(tn)],
        roc=[list(map(float, fpr)), list(map(float, tpr))], pr=[list(map(float, r)), list(map(float, p))]))
json.dump(out, sys.stdout)
"#;

#[test]
fn metrics_agree_with_scikit_learn() {
    let name = "metrics_agree_with_scikit_learn";
    let has = Command::new("python3").args(["-c", "import sklearn"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        return common::skip(name, "python3 with scikit-learn (python3 -m pip install scikit-learn)");
    }
    let mut rng = sampling::generator(3);
    let mut cases = Vec::new();
    // Few levels give many ties; the shares of defective cells go from rare to common.
    for (items, levels, share) in [(4, 2, 2), (50, 5, 3), (400, 20, 30), (2624, 1000, 3), (3000, 100_000, 2)] {
        let mut targets: Vec<bool> = (0..items).map(|_| sampling::below(&mut rng, share) == 0).collect();
        (targets[0], targets[1]) = (true, false);
        let score = |target: bool, draw: usize| (draw + usize::from(target) * levels / 4) as f32 / levels as f32;
        let scores: Vec<f32> = targets.iter().map(|&t| score(t, sampling::below(&mut rng, levels))).collect();
        cases.push((scores, targets, 0.7f32));
    }
    let json: Vec<_> = cases
        .iter()
        .map(|(s, t, threshold)| serde_json::json!({ "scores": s, "targets": t, "threshold": threshold }))
        .collect();
    let mut python = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 ran a moment ago");
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(serde_json::to_string(&json).unwrap().as_bytes()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success());
    let theirs: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs.len(), cases.len());
    let near = |what: &str, ours: f64, theirs: &serde_json::Value| {
        let theirs = theirs.as_f64().unwrap();
        assert!((ours - theirs).abs() < 1e-9, "{what}: {ours} here, {theirs} there");
    };
    for ((scores, targets, threshold), theirs) in cases.iter().zip(&theirs) {
        let ranking = Ranking::new(scores, targets);
        near("AUROC", ranking.auroc().unwrap(), &theirs["auroc"]);
        near("AUPR", ranking.aupr().unwrap(), &theirs["aupr"]);
        let c = Confusion::at(*threshold, scores, targets);
        for (index, ours) in [c.accuracy(), c.precision(), c.recall(), c.f1()].into_iter().enumerate() {
            near("figure", ours, &theirs["figures"][index]);
        }
        assert_eq!(serde_json::json!([c.tp, c.fp, c.fn_, c.tn]), theirs["confusion"]);
        let roc = ranking.roc(usize::MAX);
        assert_eq!(roc.len(), theirs["roc"][0].as_array().unwrap().len());
        for (index, point) in roc.iter().enumerate() {
            near("FPR", point.x, &theirs["roc"][0][index]);
            near("TPR", point.y, &theirs["roc"][1][index]);
        }
        // Theirs falls in recall and ends with an added (0, 1).
        let pr = ranking.pr(usize::MAX);
        assert_eq!(pr.len() + 1, theirs["pr"][0].as_array().unwrap().len());
        for (index, point) in pr.iter().rev().enumerate() {
            near("recall", point.x, &theirs["pr"][0][index]);
            near("precision", point.y, &theirs["pr"][1][index]);
        }
    }
}

#[test]
fn the_real_elpv_set_reads_and_splits_evenly() {
    use cellgate::eval::elpv;
    let Ok(set) = elpv::data_dir(None).and_then(|dir| elpv::open(&dir)) else {
        return common::skip("the_real_elpv_set_reads_and_splits_evenly", "the ELPV images (cellgate data elpv)");
    };
    let counts: Vec<(String, String, usize)> = set.counts().into_iter().map(|c| (c.label, c.kind, c.images)).collect();
    let expected = [
        ("0", "mono", 588),
        ("0", "poly", 920),
        ("1/3", "mono", 117),
        ("1/3", "poly", 178),
        ("2/3", "mono", 56),
        ("2/3", "poly", 50),
        ("1", "mono", 313),
        ("1", "poly", 402),
    ];
    assert_eq!(counts, expected.map(|(label, kind, n)| (label.to_string(), kind.to_string(), n)));
    let folds = folds::stratified(&set.items, 5, 0).unwrap();
    assert!(folds.notes.is_empty());
    assert!(folds.test.iter().all(|fold| fold.len() == 524 || fold.len() == 525));
}
