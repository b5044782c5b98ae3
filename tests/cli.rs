//! The command line as a user or a script sees it.

use crate::tool::{arg, fixture, onnxzip, save};
use crate::tool::{floats, model, node};
use serde_json::Value;
use std::path::Path;

fn optimize(passes: &str, more: &[&str], input: &Path, output: &Path) -> crate::tool::Ran {
    let mut args = vec!["optimize".to_owned(), "--passes".into(), passes.into()];
    args.extend(more.iter().map(|s| s.to_string()));
    args.extend([arg(input), arg(output)]);
    onnxzip(args)
}

#[test]
fn every_help_has_what_a_script_needs() {
    let top = onnxzip(["--help"]).ok();
    for command in ["optimize", "inspect", "verify", "passes", "bench"] {
        assert!(top.contains(command), "{command}: {top}");
        let help = onnxzip([command, "--help"]).ok();
        assert!(help.contains("Usage:"), "{help}");
        if ["optimize", "verify"].contains(&command) {
            assert!(help.contains("Exit codes:"), "{command}: {help}");
        }
    }
    assert!(top.contains("Exit codes:"));
    let optimize = onnxzip(["optimize", "--help"]).ok();
    for word in [
        "Examples:",
        "--calib",
        "--budget",
        "sqnr:",
        "Default:",
        "--json",
        "--keep",
        "--no-verify",
        "--seed",
        "--threads",
    ] {
        assert!(optimize.contains(word), "{word}: {optimize}");
    }
    assert!(onnxzip(["--version"]).ok().contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn passes_lists_all_and_explains_each() {
    let list = onnxzip(["passes"]).ok();
    for p in onnxzip::passes::ALL {
        assert!(list.contains(p.name) && list.contains(p.summary), "{list}");
        let page = onnxzip(["passes", p.name]).ok();
        for o in p.options {
            assert!(page.contains(o.name) && page.contains(o.doc), "{page}");
        }
    }
}

#[test]
fn inspect_tells_operators_and_parameters() {
    let out = onnxzip(["inspect".into(), arg(&fixture("digits_cnn.onnx"))]).ok();
    for word in ["Conv", "BatchNormalization", "Gemm", "parameters", "MACs", "fc1.weight"] {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn the_json_report_holds_what_the_table_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, report) = (folder.path().join("o.onnx"), folder.path().join("r.json"));
    let input = fixture("digits_mlp.onnx");
    let calib = arg(&fixture("digits.npz"));
    let text = optimize("int8", &["--calib", &calib, "--json", &arg(&report)], &input, &out).ok();
    let r: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    let size = |p: &Path| p.metadata().expect("a file").len();
    assert_eq!(r["before"]["bytes"], size(&input));
    assert_eq!(r["after"]["bytes"], size(&out));
    assert_eq!(r["written"], true);
    assert_eq!(r["unverified"], false);
    assert_eq!(r["data"]["synthetic"], false);
    assert_eq!(
        (&r["data"]["calibration"], &r["data"]["held_back"]),
        (&192.into(), &64.into())
    );
    assert!(r["before"]["params"].as_u64().expect("a count") > 560_000, "{r}");
    assert!(r["before"]["macs"].as_u64().expect("a count") > 560_000, "{r}");
    let names: Vec<&str> = r["passes"]
        .as_array()
        .expect("passes")
        .iter()
        .filter_map(|p| p["pass"].as_str())
        .collect();
    assert_eq!(names, ["simplify", "int8"]);
    let gap = &r["gaps"][0];
    assert_eq!(gap["name"], "logits");
    if let Some(db) = gap["sqnr_db"].as_f64() {
        assert!(text.contains(&format!("{db:.1} dB")), "{db}: {text}");
    }
    for word in [
        "before",
        "after",
        "file",
        "nodes",
        "parameters",
        "MACs",
        "logits",
        "OK: ",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn the_same_bytes_come_out_every_time_and_for_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let calib = arg(&fixture("digits.npz"));
    let made = |name: &str, threads: &str| {
        let out = folder.path().join(name);
        let more = ["--calib", &calib, "--threads", threads, "--seed", "7"];
        optimize("prune,lowrank,int8", &more, &fixture("digits_cnn.onnx"), &out).ok();
        std::fs::read(out).expect("an output")
    };
    let one = made("1.onnx", "1");
    assert!(one == made("again.onnx", "1"), "two runs differ");
    assert!(one == made("2.onnx", "2"), "two threads give something else than one");
    assert!(one == made("3.onnx", "3"), "three threads give something else than one");
}

#[test]
fn a_second_simplify_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["digits_mlp.onnx", "digits_cnn.onnx", "digits_masked.onnx"] {
        let (once, twice) = (folder.path().join("once.onnx"), folder.path().join("twice.onnx"));
        let calib = arg(&fixture("digits.npz"));
        optimize("simplify", &["--calib", &calib], &fixture(name), &once).ok();
        let text = optimize("simplify", &["--calib", &calib], &once, &twice).ok();
        assert!(text.contains("nothing to do"), "{name}: {text}");
        assert!(text.contains("equal bit for bit"), "{name}: {text}");
        assert!(
            std::fs::read(&once).expect("read") == std::fs::read(&twice).expect("read"),
            "{name}"
        );
    }
}

#[test]
fn outside_the_budget_nothing_is_written_unless_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, report) = (folder.path().join("o.onnx"), folder.path().join("r.json"));
    let (calib, json) = (arg(&fixture("digits.npz")), arg(&report));
    let more = ["--calib", &calib, "--budget", "sqnr:300dB", "--json", &json];
    let ran = optimize("int8", &more, &fixture("digits_cnn.onnx"), &out);
    assert_eq!(ran.code, Some(1), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("FAILED") && ran.out.contains("NOT written"),
        "{}",
        ran.out
    );
    assert!(!out.exists());
    let r: Value = serde_json::from_slice(&std::fs::read(&report).expect("a report")).expect("JSON");
    assert_eq!(r["written"], false);
    assert!(
        r["culprit"]
            .as_str()
            .is_some_and(|c| c.contains("int8") || c.contains("simplify")),
        "{r}"
    );
    let kept = optimize(
        "int8",
        &[&more[..], &["--keep"]].concat(),
        &fixture("digits_cnn.onnx"),
        &out,
    );
    assert_eq!(kept.code, Some(1), "{}{}", kept.out, kept.err);
    assert!(out.exists() && kept.out.contains("--keep"), "{}", kept.out);
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        2,
        "no temporary file is left"
    );
}

#[test]
fn an_unverified_output_is_called_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("o.onnx");
    let text = optimize("simplify", &["--no-verify"], &fixture("digits_cnn.onnx"), &out).ok();
    assert!(text.contains("NOT VERIFIED") && text.contains("--no-verify"), "{text}");
    assert!(out.exists());
}

/// An operator that no engine knows: the rewrite may be right, but nobody can tell.
#[test]
fn what_cannot_be_run_is_not_let_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, out) = (folder.path().join("i.onnx"), folder.path().join("o.onnx"));
    let mut foo = node("Foo", &["x"], &["y"]);
    foo.domain = Some("com.acme".into());
    save(&input, &model(vec![foo], vec![]));
    let ran = optimize("simplify", &[], &input, &out);
    assert_eq!(ran.code, Some(3), "{}{}", ran.out, ran.err);
    assert!(
        ran.out.contains("NOT VERIFIED") && ran.out.contains("--no-verify") && ran.out.contains("--engine ort"),
        "{}",
        ran.out
    );
    let mut foo = node("Foo", &["x"], &["h"]);
    foo.domain = Some("com.acme".into());
    let dense = node("MatMul", &["h", "w"], &["y"]);
    save(&input, &model(vec![foo, dense], vec![floats("w", &[4, 4], &[0.5; 16])]));
    let ran = optimize("int8", &[], &input, &out);
    assert_eq!(ran.code, Some(3), "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("Foo") && ran.err.contains("--engine ort"),
        "{}",
        ran.err
    );
    assert!(!out.exists());
    optimize("simplify", &["--no-verify"], &input, &out).ok();
    assert!(out.exists());
}

#[test]
fn an_npy_serves_a_model_with_one_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, array) = (folder.path().join("o.onnx"), folder.path().join("x.npy"));
    let mut zip =
        zip::ZipArchive::new(std::fs::File::open(fixture("digits.npz")).expect("a fixture")).expect("an archive");
    let mut file = std::fs::File::create(&array).expect("a file");
    std::io::copy(&mut zip.by_name("image.npy").expect("an array"), &mut file).expect("copied");
    let text = optimize("int8", &["--calib", &arg(&array)], &fixture("digits_mlp.onnx"), &out).ok();
    assert!(
        text.contains("64 held-back samples") && !text.contains("made-up"),
        "{text}"
    );
}

/// A folder beside the model is found without being named.
#[test]
fn folders_of_protobuf_tensors_serve_as_data() {
    use prost::Message;
    let folder = tempfile::tempdir().expect("a folder");
    let (input, out) = (folder.path().join("i.onnx"), folder.path().join("o.onnx"));
    save(
        &input,
        &model(
            vec![node("Add", &["x", "w"], &["y"])],
            vec![floats("w", &[4], &[1.0, 2.0, 3.0, 4.0])],
        ),
    );
    for i in 0..8 {
        let set = folder.path().join(format!("test_data_set_{i}"));
        std::fs::create_dir(&set).expect("made");
        let x = floats("x", &[1, 4], &[i as f32, 0.5, -1.0, 2.0]);
        std::fs::write(set.join("input_0.pb"), x.encode_to_vec()).expect("written");
    }
    for more in [vec![], vec!["--calib", folder.path().to_str().expect("UTF-8")]] {
        let text = optimize("simplify", &more, &input, &out).ok();
        assert!(
            text.contains("2 held-back samples") && !text.contains("synthetic"),
            "{text}"
        );
    }
}

#[test]
fn made_up_data_are_warned_about() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("o.onnx");
    let ran = optimize("int8", &["--keep"], &fixture("digits_mlp.onnx"), &out);
    assert!(
        ran.out.contains("warning: ") && ran.out.contains("made-up") && ran.out.contains("--calib"),
        "{}{}",
        ran.out,
        ran.err
    );
}

#[test]
fn verify_compares_two_files() {
    let (a, b, calib) = (
        fixture("digits_cnn.onnx"),
        fixture("digits_mlp.onnx"),
        arg(&fixture("digits.npz")),
    );
    let same = onnxzip(["verify".into(), "--calib".into(), calib.clone(), arg(&a), arg(&a)]).ok();
    assert!(same.contains("equal bit for bit"), "{same}");
    let other = onnxzip(["verify".into(), "--calib".into(), calib, arg(&a), arg(&b)]);
    assert_eq!(other.code, Some(1), "{}{}", other.out, other.err);
}
