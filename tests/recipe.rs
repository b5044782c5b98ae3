//! `onnxzip.toml`: a run from a file, what is another for some nodes, and the recipe that a report writes back.

use crate::tool::{Ran, arg, fixture, onnxzip};
use onnxzip::data::preprocess::STEPS;
use onnxzip::passes::{ALL, SCOPED, parse_list};
use onnxzip::recipe::{Recipe, table};
use onnxzip::report::Report;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Writes a recipe into a folder beside the digits MLP and its data.
fn with(folder: &Path, recipe: &str) -> PathBuf {
    for name in ["digits_mlp.onnx", "digits.npz"] {
        std::fs::copy(fixture(name), folder.join(name)).expect("copied");
    }
    let file = folder.join("onnxzip.toml");
    std::fs::write(&file, recipe).expect("written");
    file
}

fn optimize(args: &[&str]) -> Ran {
    onnxzip(["optimize"].iter().chain(args).copied())
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("a report")).expect("JSON")
}

/// All notes of a pass about nodes.
fn notes(report: &Value, pass: &str) -> Vec<(String, String)> {
    let passes = report["passes"].as_array().expect("passes");
    let of = passes
        .iter()
        .filter(|p| p["pass"].as_str().is_some_and(|s| s.starts_with(pass)));
    of.flat_map(|p| p["notes"].as_array().expect("notes"))
        .map(|n| {
            (
                n["node"].as_str().expect("a node").to_owned(),
                n["what"].as_str().expect("a note").to_owned(),
            )
        })
        .collect()
}

const DATA: &str = "input = \"digits_mlp.onnx\"\noutput = \"small.onnx\"\n[data]\ncalib = \"digits.npz\"\n";

/// The names of the weighted nodes of the digits MLP.
fn layers() -> Vec<String> {
    let model = onnxzip::onnx::read(&fixture("digits_mlp.onnx")).expect("a model");
    let gemms = model.node_ids().into_iter().filter(|n| model.node(*n).is("Gemm"));
    gemms.map(|n| model.label(n)).collect()
}

#[test]
fn a_recipe_runs_from_any_folder_and_flags_go_first() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = with(
        folder.path(),
        &format!("passes = \"int8\"\nbudget = \"sqnr:15dB\"\n{DATA}"),
    );
    let out = optimize(&["--recipe", &arg(&recipe)]).ok();
    let small = folder.path().join("small.onnx");
    assert!(out.contains("int8") && small.exists(), "{out}");
    let other = arg(&folder.path().join("other.onnx"));
    let from = arg(&fixture("digits_mlp.onnx"));
    let out = optimize(&["--recipe", &arg(&recipe), "--passes", "fp16", &from, &other]).ok();
    assert!(out.contains("fp16") && !out.contains("int8"), "{out}");
    let strict = optimize(&["--recipe", &arg(&recipe), "--budget", "sqnr:90dB"]);
    assert_eq!(strict.code, Some(1), "{}", strict.out);
    let searched = optimize(&["--recipe", &arg(&recipe), "--preset", "fast"]).ok();
    assert!(searched.contains("searched"), "{searched}");
    let nowhere = with(folder.path(), "passes = \"int8\"");
    let none = optimize(&["--recipe", &arg(&nowhere)]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("IN"), "{}", none.err);
    let wrong = with(folder.path(), "\n\npases = \"int8\"");
    let wrong = optimize(&["--recipe", &arg(&wrong)]);
    assert_eq!(wrong.code, Some(2));
    for part in ["onnxzip.toml", "line 3", "\"pases\"", "did you mean \"passes\""] {
        assert!(wrong.err.contains(part), "{part}: {}", wrong.err);
    }
}

#[test]
fn the_recipe_of_a_search_gives_the_same_bytes() {
    let folder = tempfile::tempdir().expect("a folder");
    let asked =
        format!("budget = \"sqnr:20dB\"\nseed = 3\n{DATA}[[layer]]\nmatch = \"*\"\npasses.prune.skip = false\n");
    let recipe = with(folder.path(), &asked);
    let file = |name: &str| arg(&folder.path().join(name));
    let (report, page, summary) = (file("r.json"), file("r.html"), file("r.md"));
    let more = ["--json", &report, "--report", &page, "--summary", &summary];
    optimize(&[&["--recipe", &arg(&recipe)], &more[..]].concat()).ok();
    let first = std::fs::read(folder.path().join("small.onnx")).expect("written");
    let again = json(Path::new(&report))["recipe"]
        .as_str()
        .expect("a recipe")
        .to_owned();
    assert!(
        again.contains("seed = 3") && again.contains("passes.prune.skip = false"),
        "{again}"
    );
    for path in [&page, &summary] {
        let text = std::fs::read_to_string(path).expect("a report");
        assert!(text.contains("[data]") && text.contains("passes.prune.skip"), "{text}");
    }
    std::fs::remove_file(folder.path().join("small.onnx")).expect("there");
    let second = folder.path().join("again.toml");
    std::fs::write(&second, &again).expect("written");
    let out = optimize(&["--recipe", &arg(&second)]).ok();
    assert!(!out.contains("searched"), "{out}");
    assert_eq!(first, std::fs::read(folder.path().join("small.onnx")).expect("written"));
}

#[test]
fn what_is_another_for_some_nodes_is_written_as_it_is_read() {
    let asked = "[[layer]]\nmatch = [\"a\\\"*\", \"b\"]\npasses = false\n[[layer]]\nmatch = \"b\"\npasses.int8 = { skip = false, weights = 7 }\n";
    let mut report = Report::new("none".into());
    (report.input, report.output) = ("in.onnx".into(), "out.onnx".into());
    report.rules = Recipe::parse(asked).expect("a recipe").rules;
    let written = report.recipe();
    assert_eq!(written.matches("[[layer]]").count(), 3, "{written}");
    let mut read = Recipe::parse(&written).expect("a recipe").rules;
    // Order counts among rules about the same option only; this sort is stable.
    for rules in [&mut read, &mut report.rules] {
        rules.sort_by(|a, b| (&a.glob, a.pass, a.option).cmp(&(&b.glob, b.pass, b.option)));
    }
    assert_eq!(read, report.rules, "{written}");
}

#[test]
fn every_lossy_pass_can_be_kept_from_a_layer() {
    let layers = layers();
    let first = &layers[0];
    for pass in [
        "prune(ratio=0.25)",
        "sparsify(sparsity=0.5)",
        "lowrank(rank=8)",
        "int8",
        "weights(bits=8)",
        "dynamic",
        "fp16(only=weights)",
    ] {
        let name = pass.split('(').next().expect("a name");
        let folder = tempfile::tempdir().expect("a folder");
        let run = |rules: &str| {
            let text = format!("passes = \"{pass}\"\nbudget = \"sqnr:1dB\"\n{DATA}{rules}");
            let recipe = with(folder.path(), &text);
            let report = folder.path().join("r.json");
            optimize(&["--recipe", &arg(&recipe), "--json", &arg(&report)]).ok();
            notes(&json(&report), name)
        };
        // "left alone as asked", or for fp16 "left in float32 as asked".
        let skips = |notes: &[(String, String)]| notes.iter().filter(|(_, what)| what.contains("as asked")).count();
        assert_eq!(skips(&run("")), 0, "{pass}");
        let text = format!("[[layer]]\nmatch = {first:?}\npasses.{name} = false\n");
        let one = run(&text);
        assert!(skips(&one) >= 1, "{pass}: {one:?}");
        let all = run("[[layer]]\nmatch = \"*\"\npasses = false\n");
        assert!(skips(&all) >= layers.len() - 1, "{pass}: {all:?}");
    }
}

#[test]
fn options_differ_from_layer_to_layer() {
    let layers = layers();
    let first = &layers[0];
    let folder = tempfile::tempdir().expect("a folder");
    let run = |passes: &str, option: &str| {
        let rule = format!("[[layer]]\nmatch = {first:?}\npasses.{option}\n");
        let text = format!("passes = \"{passes}\"\nbudget = \"sqnr:1dB\"\n{DATA}{rule}");
        let report = folder.path().join("r.json");
        let recipe = with(folder.path(), &text);
        optimize(&["--recipe", &arg(&recipe), "--json", &arg(&report)]).ok();
        let name = passes.split('(').next().expect("a name").to_owned();
        notes(&json(&report), &name)
    };
    let about = |notes: &[(String, String)], node: &str| -> String {
        let of = notes.iter().filter(|(n, _)| n == node).map(|(_, what)| what.as_str());
        of.collect::<Vec<_>>().join("; ")
    };
    let ranks = run("lowrank(rank=8)", "lowrank.rank = 4");
    assert!(about(&ranks, first).contains("rank 4"), "{ranks:?}");
    assert!(about(&ranks, &layers[1]).contains("rank 8"), "{ranks:?}");
    let bits = run("weights(bits=8)", "weights.bits = 4");
    assert!(about(&bits, first).contains("4 bits"), "{bits:?}");
    assert!(about(&bits, &layers[1]).contains("8 bits"), "{bits:?}");
    let channels = run("prune(ratio=0.5)", "prune.ratio = 0.25");
    let went = |node: &str| -> f64 {
        let of = channels.iter().find(|(n, what)| n == node && what.contains('→'));
        let text = &of.expect("channels went").1;
        let numbers: Vec<f64> = text.split(' ').filter_map(|w| w.parse().ok()).collect();
        numbers[1] / numbers[0]
    };
    assert!(
        (went(first) - 0.75).abs() < 0.02 && (went(&layers[1]) - 0.5).abs() < 0.02,
        "{channels:?}"
    );
    let zeros = run("sparsify(sparsity=0.2)", "sparsify.sparsity = 0.8");
    assert_ne!(about(&zeros, first), about(&zeros, &layers[1]));
    assert!(about(&zeros, first).contains("80.0 %"), "{zeros:?}");
}

#[test]
fn rules_that_match_nothing_or_do_not_go_together_are_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let rule = "[[layer]]\nmatch = \"nobody\"\npasses.int8 = false\n";
    let recipe = with(folder.path(), &format!("passes = \"int8\"\n{DATA}{rule}"));
    let out = optimize(&["--recipe", &arg(&recipe)]).ok();
    assert!(out.contains("no node is called \"nobody\""), "{out}");
    let rule = "[[layer]]\nmatch = \"*\"\npasses.lowrank.rank = 4\n";
    let recipe = with(folder.path(), &format!("passes = \"lowrank(ratio=0.5)\"\n{DATA}{rule}"));
    let clash = optimize(&["--recipe", &arg(&recipe)]);
    assert_eq!(clash.code, Some(2), "{}", clash.out);
    assert!(
        clash.err.contains("options for node") && clash.err.contains("not both"),
        "{}",
        clash.err
    );
}

/// The page, with the tables that are made from code in their places.
fn page(kept: &str) -> String {
    let steps = STEPS.iter().map(|(step, what)| format!("| `{step}` | {what} |\n"));
    let scoped = SCOPED.iter().map(|(pass, options)| {
        let options: Vec<String> = options.iter().map(|o| format!("`{o}`")).collect();
        format!("| `{pass}` | {} |\n", options.join(", "))
    });
    let parts = [
        ("keys", table()),
        (
            "steps",
            format!("| step | what |\n|---|---|\n{}", steps.collect::<String>()),
        ),
        (
            "options",
            format!("| pass | options |\n|---|---|\n{}", scoped.collect::<String>()),
        ),
    ];
    let mut page = kept.to_owned();
    for (name, made) in parts {
        let (open, close) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let start = page.find(&open).expect("a mark") + open.len();
        let end = page.find(&close).expect("a mark");
        page.replace_range(start..end, &made);
    }
    page
}

#[test]
fn the_recipe_page_is_up_to_date_and_its_recipes_can_be_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recipe.md");
    let kept = std::fs::read_to_string(&path).expect("a page");
    let made = page(&kept);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &made).expect("written");
    }
    assert!(
        kept == made || std::env::var_os("BLESS").is_some(),
        "docs/recipe.md is stale: run with BLESS=1"
    );
    let blocks: Vec<&str> = made
        .split("```toml\n")
        .skip(1)
        .filter_map(|b| b.split("```").next())
        .collect();
    assert!(blocks.len() >= 2);
    for block in blocks {
        if let Err(e) = Recipe::parse(block) {
            panic!("{e:#}\n{block}");
        }
    }
    let scoped = ALL.iter().filter(|p| p.lossy && !p.options.is_empty());
    assert!({ scoped }.all(|p| {
        parse_list(&format!(
            "{}({}=x)",
            p.name,
            if p.name == "fp16" { "block" } else { "skip" }
        ))
        .is_ok()
    }));
}
