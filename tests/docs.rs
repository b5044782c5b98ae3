//! `docs/passes.md` is what the pass table says; `BLESS=1` rewrites it.

use onnxzip::{cli, passes};
use std::path::Path;

#[test]
fn the_passes_page_is_up_to_date() {
    let mut page = String::from("# Passes\n\nMade from the table in `src/passes/mod.rs`; a test compares.\n");
    for p in passes::ALL {
        assert!(
            !p.summary.is_empty() && !p.doc.is_empty(),
            "{} is not documented",
            p.name
        );
        page += "\n";
        page += &cli::explain(p);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/passes.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == page, "docs/passes.md is stale: run with BLESS=1");
}

#[test]
fn every_option_has_a_default_that_its_pass_takes() {
    for p in passes::ALL {
        let spelled: Vec<String> = p.options.iter().map(|o| format!("{}={}", o.name, o.default)).collect();
        let text = match spelled.is_empty() {
            true => p.name.to_owned(),
            false => format!("{}({})", p.name, spelled.join(",")),
        };
        let parsed = passes::parse_list(&text);
        assert!(parsed.is_ok(), "{text}: {:#}", parsed.err().expect("an error"));
    }
}
