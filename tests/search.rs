//! A budget or a target instead of passes: what the search finds, and what the reports say of it.

use crate::tool::{Ran, arg, fixture, onnxzip};
use onnxzip::ir::Origin;
use onnxzip::onnx;
use serde_json::Value;
use std::path::Path;

/// Runs the search on the digits MLP.
fn search(more: &[&str], folder: &Path) -> (Ran, Value) {
    let json = folder.join("report.json");
    let mut args: Vec<String> = vec!["optimize".into(), "--calib".into(), arg(&fixture("digits.npz"))];
    args.extend(["--json".into(), arg(&json)]);
    args.extend(more.iter().map(|s| s.to_string()));
    args.extend([arg(&fixture("digits_mlp.onnx")), arg(&folder.join("small.onnx"))]);
    let ran = onnxzip(args);
    let text = std::fs::read_to_string(&json).unwrap_or("null".into());
    (ran, serde_json::from_str(&text).expect("JSON"))
}

fn bytes(path: &Path) -> u64 {
    path.metadata().expect("written").len()
}

#[test]
fn a_budget_alone_gives_less_than_int8_alone_and_the_passes_that_it_names_give_it_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ran, report) = search(&["--budget", "sqnr:20dB"], folder.path());
    let out = ran.ok();
    let small = folder.path().join("small.onnx");
    let tried = report["search"].as_array().expect("a search");
    assert!(tried.len() >= 3 && tried.len() <= 14, "{out}");
    let chosen: Vec<&Value> = tried.iter().filter(|t| t["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1, "{out}");
    assert!(
        report["gaps"][0]["sqnr_db"].as_f64().expect("a number") >= 20.0,
        "{out}"
    );
    let int8 = tried.iter().find(|t| t["passes"] == "int8(rest=float)");
    let int8 = int8.expect("int8 is tried");
    assert!(bytes(&small) * 10 < int8["bytes"].as_u64().expect("bytes") * 9, "{out}");
    // With all samples the same error may mean more; then less of it is asked for.
    let made = chosen[0]["made"].as_str();
    let passes = made.or(chosen[0]["passes"].as_str()).expect("passes");
    let again = folder.path().join("again.onnx");
    let calib = arg(&fixture("digits.npz"));
    let (from, to) = (arg(&fixture("digits_mlp.onnx")), arg(&again));
    onnxzip([
        "optimize",
        "--passes",
        passes,
        "--calib",
        &calib,
        "--budget",
        "sqnr:20dB",
        "--names",
        "short",
        &from,
        &to,
    ])
    .ok();
    assert_eq!(
        std::fs::read(&small).expect("there"),
        std::fs::read(&again).expect("there")
    );
}

#[test]
fn a_search_makes_names_inside_short_unless_they_are_to_be_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = folder.path().join("small.onnx");
    let longest = |more: &[&str]| {
        let (ran, report) = search(&[&["--budget", "sqnr:20dB"], more].concat(), folder.path());
        ran.ok();
        let model = onnx::read(&small).expect("a model");
        let public = |name: &str| model.main().outputs().iter().any(|p| p.name() == name);
        assert!(public("logits"), "outputs keep their names");
        let inner = model
            .values()
            .filter(|(_, v)| v.origin() != Origin::Input && !public(&v.name));
        let most = inner.map(|(_, v)| v.name.len()).max().expect("values");
        (most, bytes(&small), report["short_names"] == true)
    };
    let (short, few, said) = longest(&[]);
    let (long, many, kept) = longest(&["--names", "keep"]);
    assert!(short <= 2 && said && long > 10 && !kept, "{short}, {long}");
    assert!(few < many, "{few} of {many} bytes");
}

#[test]
fn a_search_whose_time_is_over_gives_the_best_so_far_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ran, report) = search(&["--budget", "sqnr:20dB", "--search-time", "0s"], folder.path());
    let out = ran.ok();
    let tried = report["search"].as_array().expect("a search");
    assert_eq!(tried.len(), 1, "{out}");
    assert!(
        out.contains("--search-time") && bytes(&folder.path().join("small.onnx")) > 0,
        "{out}"
    );
    let (ran, report) = search(&["--budget", "sqnr:20dB", "--search-time", "1h"], folder.path());
    assert!(!ran.ok().contains("--search-time"));
    assert!(report["search"].as_array().expect("a search").len() >= 3);
    for wrong in ["5", "m", "1e400h", "fast"] {
        let (ran, _) = search(&["--budget", "sqnr:20dB", "--search-time", wrong], folder.path());
        let said = ran.err;
        assert!(said.contains("write 90s, 5m or 1h"), "{said}");
    }
}

#[test]
fn a_target_is_met_with_the_least_loss_or_refused_with_what_was_reached() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = folder.path().join("small.onnx");
    let (ran, report) = search(&["--target-ratio", "6x"], folder.path());
    let out = ran.ok();
    let before = bytes(&fixture("digits_mlp.onnx"));
    assert!(bytes(&small) * 6 <= before, "{out}");
    let used = |t: &Value| t["used"].as_f64().expect("a number");
    let all = report["search"].as_array().expect("a search");
    let chosen = all.iter().find(|t| t["chosen"] == true).expect("one");
    let met = all
        .iter()
        .filter(|t| t["bytes"].as_u64().is_some_and(|b| b * 6 <= before));
    assert!(met.into_iter().all(|t| used(t) >= used(chosen)), "{out}");
    std::fs::remove_file(&small).expect("there");
    let (ran, _) = search(&["--max-bytes", "1kB", "--preset", "fast"], folder.path());
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    assert!(ran.out.contains("were reached, above the 1.0 kB"), "{}", ran.out);
    assert!(!small.exists());
}

#[test]
fn accuracy_needs_labels_and_outputs_need_names_that_exist() {
    let folder = tempfile::tempdir().expect("a folder");
    let zip = folder.path().join("plain.npy");
    std::fs::copy(fixture("digits.npz"), folder.path().join("digits.npz")).expect("copied");
    let (from, to) = (arg(&fixture("digits_mlp.onnx")), arg(&folder.path().join("o.onnx")));
    let made_up = onnxzip(["optimize", "--budget", "accuracy:1pt", &from, &to]);
    assert_eq!(made_up.code, Some(2), "{}", made_up.err);
    assert!(made_up.err.contains("labels.npy"), "{}", made_up.err);
    let (ran, _) = search(&["--budget", "sqnr:20dB@nobody"], folder.path());
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.err.contains("\"nobody\"") && ran.err.contains("there are:"),
        "{}",
        ran.err
    );
    let both = onnxzip(["optimize", "--passes", "int8", "--preset", "fast", &from, &to]);
    assert_eq!(both.code, Some(2), "{}", both.err);
    assert!(!Path::new(&to).exists() && !zip.exists());
}

#[test]
fn reports_say_what_happened_and_a_baseline_holds_the_next_run_to_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| arg(&folder.path().join(name));
    let (html, summary) = (file("r.html"), file("s.md"));
    let more = ["--passes", "int8", "--report", &html, "--summary", &summary];
    let (ran, report) = search(&more, folder.path());
    ran.ok();
    let page = std::fs::read_to_string(&html).expect("a page");
    for layer in report["layers"].as_array().expect("layers") {
        assert!(page.contains(layer["node"].as_str().expect("a name")), "{layer}");
    }
    assert!(!report["layers"].as_array().expect("layers").is_empty());
    for word in [
        "<!doctype html>",
        "Size by layer",
        "onnxzip optimize --passes",
        "held-back",
    ] {
        assert!(page.contains(word), "{word}");
    }
    assert!(!page.contains("http://") || page.matches("http://").count() == page.matches("http://www.w3.org").count());
    assert!(
        std::fs::read_to_string(&summary)
            .expect("a summary")
            .contains("| file |")
    );
    std::fs::copy(file("report.json"), file("old.json")).expect("copied");
    let old = file("old.json");
    let (same, _) = search(&["--passes", "int8", "--baseline", &old], folder.path());
    same.ok();
    let (larger, _) = search(&["--passes", "simplify", "--baseline", &old], folder.path());
    assert_eq!(larger.code, Some(1), "{}", larger.out);
    assert!(larger.out.contains("in the baseline"), "{}", larger.out);
    let (nonsense, _) = search(&["--passes", "int8", "--baseline", &html], folder.path());
    assert_eq!(nonsense.code, Some(2), "{}", nonsense.out);
}

#[test]
fn what_breaks_the_budget_is_named_by_layer() {
    let folder = tempfile::tempdir().expect("a folder");
    let (ran, report) = search(&["--passes", "lowrank(rank=1)", "--budget", "sqnr:30dB"], folder.path());
    assert_eq!(ran.code, Some(1), "{}", ran.out);
    let worst = report["layers"][0]["node"].as_str().expect("a layer");
    assert!(
        ran.out.contains("most noise comes in at") && ran.out.contains(worst),
        "{}",
        ran.out
    );
}

#[test]
fn the_pipeline_step_ends_with_the_exit_code_and_writes_the_summary() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binaries = Path::new(env!("CARGO_BIN_EXE_onnxzip")).parent().expect("a folder");
    let path = format!("{}:{}", arg(binaries), std::env::var("PATH").unwrap_or_default());
    let step = |budget: &str| {
        std::process::Command::new("bash")
            .arg(root.join(".ci/optimize"))
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("MODEL", fixture("digits_mlp.onnx"))
            .env("OUTPUT", file("o.onnx"))
            .env("CALIB", fixture("digits.npz"))
            .env("PASSES", "int8")
            .env("BUDGET", budget)
            .env("GITHUB_STEP_SUMMARY", file("summary.md"))
            .env("GITHUB_OUTPUT", file("outputs"))
            .output()
            .expect("bash")
    };
    let good = step("sqnr:15dB");
    assert_eq!(good.status.code(), Some(0), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(file("o.onnx").exists() && file("onnxzip.json").exists());
    let bad = step("sqnr:150dB");
    assert_eq!(bad.status.code(), Some(1));
    let outputs = std::fs::read_to_string(file("outputs")).expect("outputs");
    assert_eq!(outputs, "exit-code=0\nexit-code=1\n");
    let summary = std::fs::read_to_string(file("summary.md")).expect("a summary");
    assert!(summary.contains("✅") && summary.contains("❌"), "{summary}");
    let action = std::fs::read_to_string(root.join("action.yml")).expect("the action");
    for name in [
        "MODEL", "OUTPUT", "CALIB", "BUDGET", "PASSES", "BASELINE", "REPORT", "ARGS",
    ] {
        assert!(action.contains(&format!("        {name}: ${{{{ inputs.")), "{name}");
    }
}

#[test]
fn bench_compares_two_models_side_by_side() {
    let (a, calib) = (arg(&fixture("digits_mlp.onnx")), arg(&fixture("digits.npz")));
    let out = onnxzip(["bench", "--sessions", "2", "--turns", "3", "--calib", &calib, &a, &a]).ok();
    for word in ["median", "p99", "samples/s", "95 % interval"] {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn a_second_run_with_a_cache_measures_nothing_and_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = arg(&folder.path().join("kept.cache"));
    let small = folder.path().join("small.onnx");
    let run = |budget: &str| {
        let (ran, report) = search(&["--budget", budget, "--cache", &cache], folder.path());
        ran.ok();
        let tried = report["search"].as_array().expect("a search").clone();
        (std::fs::read(&small).expect("there"), tried)
    };
    let ((first, new), kept) = (run("sqnr:20dB"), std::fs::read(&cache).expect("kept"));
    let (second, known) = run("sqnr:20dB");
    assert_eq!(first, second);
    assert_eq!(kept, std::fs::read(&cache).expect("kept"), "nothing new was measured");
    assert!(new.iter().all(|t| t["cached"] == false) && known.iter().all(|t| t["cached"] == true));
    for key in ["passes", "bytes", "macs", "used", "sqnr_db", "chosen"] {
        let of = |all: &[Value]| all.iter().map(|t| t[key].clone()).collect::<Vec<_>>();
        assert_eq!(of(&new), of(&known), "{key}");
    }
    let plain = search(&["--budget", "sqnr:20dB"], folder.path()).0.ok();
    assert_eq!(first, std::fs::read(&small).expect("there"), "as without: {plain}");
    let (_, other) = run("sqnr:25dB");
    assert!(
        other.iter().all(|t| t["cached"] == false),
        "another budget is another search"
    );
    std::fs::write(&cache, "onnxzip cache 1\nnonsense\n").expect("written");
    let (refused, _) = search(&["--budget", "sqnr:20dB", "--cache", &cache], folder.path());
    assert_eq!(refused.code, Some(2), "{}", refused.out);
    assert!(
        refused.err.contains("kept.cache") && refused.err.contains("remove it"),
        "{}",
        refused.err
    );
}
