//! Wrong command lines.

use super::{Trial, assert_none_wrong};
use crate::tool::{model, node, onnxzip};

fn good(name: &str) -> Trial {
    Trial::new(name).model(&model(vec![node("Relu", &["x"], &["y"])], vec![]))
}

fn passes(list: &'static str, word: &str) -> Trial {
    let mut t = good(&format!("--passes {list:?}")).says(&[word]);
    t.passes = list;
    t
}

#[test]
fn a_bad_pass_list_is_refused_with_what_there_is() {
    assert_none_wrong([
        passes("simplify,nosuchpass", "nosuchpass").says(&["nosuchpass", "simplify", "prune", "lowrank", "int8"]),
        passes("int8(nosuchoption=1)", "nosuchoption"),
        passes("int8(ranges)", "ranges"),
        passes("int8(ranges=minmax", "parenthesis"),
        passes("simplify)", "simplify"),
        passes("simplify,,int8", "no pass"),
    ]);
}

#[test]
fn every_option_of_every_pass_refuses_nonsense() {
    for p in onnxzip::passes::ALL {
        // Any text may be the name of a node.
        for o in p.options.iter().filter(|o| !o.values.starts_with("names of")) {
            let text = format!("{}({}=banana)", p.name, o.name);
            let error = onnxzip::passes::parse_list(&text).err();
            let error = error.unwrap_or_else(|| panic!("{text} is taken"));
            assert!(format!("{error:#}").contains("banana"), "{text}: {error:#}");
        }
    }
}

#[test]
fn a_bad_option_is_refused_by_name() {
    let with = |args: &[&str], word: &str| good(&args.join(" ")).args(args).says(&[word]);
    assert_none_wrong([
        with(&["--nosuchflag"], "--nosuchflag"),
        with(&["--seed", "banana"], "banana"),
        with(&["--seed=-1"], "-1"),
        with(&["--threads", "many"], "many"),
        with(&["--threads", "0"], "0"),
        with(&["--budget", "banana"], "banana"),
        with(&["--budget", "sqnr:banana"], "banana"),
        with(&["--budget", "sqnr:nan"], "nan"),
        with(&["--budget", "top1:-1%"], "-1"),
        with(&["--budget", ""], "budget"),
        with(&["--calib", "nowhere.npz"], "nowhere.npz"),
        with(&["--calib", "/dev/null"], "/dev/null"),
        with(&["--no-verify", "one-path-too-many.onnx"], "out.onnx"),
    ]);
    assert_eq!(onnxzip(["optimize", "only.onnx"]).code, Some(2));
    assert_eq!(onnxzip(["nosuchcommand"]).code, Some(2));
    assert_eq!(onnxzip::<&str>([]).code, Some(2));
    assert_eq!(onnxzip(["passes", "nosuchpass"]).code, Some(2));
    assert_eq!(onnxzip(["inspect", "nowhere.onnx"]).code, Some(2));
    assert_eq!(onnxzip(["verify", "nowhere.onnx", "nowhere.onnx"]).code, Some(2));
}

/// A report that cannot be written is found before the output is let out.
#[test]
fn a_bad_report_path_is_refused_before_the_output() {
    let t = good("--json into a missing folder");
    let path = crate::tool::arg(&t.path("nowhere/r.json"));
    assert_none_wrong([t.args(&["--no-verify", "--json", &path]).says(&["nowhere"])]);
}
