//! The HTML report as a browser sees it, and the keys of the JSON report against their page in `docs`.

use crate::tool::{arg, fixture, floats, model_with, node, onnxzip, port, save, say};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// One run with everything that a page can hold, and its reports.
struct Pages {
    folder: tempfile::TempDir,
    html: String,
    json: Value,
}

fn pages(more: &[&str], model: &Path, code: i32) -> Pages {
    let folder = tempfile::tempdir().expect("a folder");
    let [html, json] = ["report.html", "report.json"].map(|n| folder.path().join(n));
    let mut args: Vec<String> = vec!["optimize".into(), "--calib".into(), arg(&fixture("digits.npz"))];
    args.extend(["--json".into(), arg(&json), "--report".into(), arg(&html)]);
    args.extend(more.iter().map(|s| s.to_string()));
    args.extend([arg(model), arg(&folder.path().join("small.onnx"))]);
    let ran = onnxzip(args);
    assert_eq!(ran.code, Some(code), "{}{}", ran.out, ran.err);
    let text = |path: &PathBuf| std::fs::read_to_string(path).expect("a report");
    Pages {
        html: text(&html),
        json: serde_json::from_str(&text(&json)).expect("JSON"),
        folder,
    }
}

const ALL: &str = "prune(error=0.003),lowrank(error=0.01,min_size=64,gain=0.1),int8";

/// Three passes in a row on a network with convolutions, timed.
static PASSES: LazyLock<Pages> = LazyLock::new(|| {
    pages(
        &["--passes", ALL, "--bench", "--budget", "sqnr:3dB"],
        &fixture("digits_cnn.onnx"),
        0,
    )
});

/// A search on one without.
static SEARCH: LazyLock<Pages> = LazyLock::new(|| pages(&["--budget", "sqnr:20dB"], &fixture("digits_mlp.onnx"), 0));

/// A tag of a page, and where the text behind it begins.
struct Tag<'a> {
    name: &'a str,
    attributes: &'a str,
}

/// The tags of a page; quotes around attributes and the text of `style` are taken as browsers take them.
fn tags(page: &str) -> Vec<Tag<'_>> {
    let (mut all, mut at) = (Vec::new(), 0);
    while let Some(start) = page[at..].find('<').map(|i| at + i) {
        let mut quoted = false;
        let end = page[start..].char_indices().find(|(_, c)| {
            quoted ^= *c == '"';
            *c == '>' && !quoted
        });
        let end = start + end.expect("a tag ends").0;
        let inner = &page[start + 1..end];
        let (name, attributes) = inner.split_once([' ', '\n']).unwrap_or((inner, ""));
        all.push(Tag { name, attributes });
        at = match name {
            "style" => end + page[end..].find("</style").expect("the style ends"),
            _ => end + 1,
        };
    }
    all
}

/// Every tag is closed where it must be, nothing comes from elsewhere, and nothing runs.
fn sound(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in tags(page) {
        match tag.name.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{name} closes what is not open"),
            None if ["!doctype", "meta", "br", "wbr"].contains(&tag.name) || tag.attributes.ends_with('/') => {}
            None => open.push(tag.name),
        }
        let known = "!doctype html head meta title style body h1 h2 p b br wbr span div table thead tbody tr th td details summary ul li code pre \
            figure figcaption svg text line circle rect polygon polyline g";
        let name = tag.name.trim_start_matches('/');
        assert!(
            known.split_whitespace().any(|k| k == name),
            "a tag of the name {name:?}"
        );
        for bad in ["src=", "href=", " on", "url(", "http"] {
            assert!(
                !format!(" {}", tag.attributes).contains(bad),
                "{name} {}",
                tag.attributes
            );
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
    let style = page.split("<style>").nth(1).and_then(|s| s.split("</style>").next());
    let style = style.expect("a style");
    assert!(!["url(", "@import", "http"].iter().any(|bad| style.contains(bad)));
    assert_eq!(style.matches('{').count(), style.matches('}').count());
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// The nodes of a model that have weights.
fn layers(model: &Path) -> Vec<String> {
    let model = onnxzip::onnx::read(model).expect("a model");
    let weighted = |n: &onnxzip::ir::NodeId| ["Conv", "Gemm", "MatMul"].iter().any(|op| model.node(*n).is(op));
    let all = model.node_ids().into_iter().filter(weighted);
    all.map(|n| model.label(n)).collect()
}

#[test]
fn pages_are_well_formed_and_need_nothing_else() {
    for p in [&*PASSES, &*SEARCH] {
        sound(&p.html);
    }
}

#[test]
fn every_layer_stands_in_the_page() {
    for (p, model) in [(&*PASSES, "digits_cnn.onnx"), (&*SEARCH, "digits_mlp.onnx")] {
        let layers = layers(&fixture(model));
        assert!(!layers.is_empty());
        for name in layers {
            let cell = format!("<td class=\"l\" data-h=\"layer\">{}</td>", escaped(&name));
            assert!(p.html.contains(&cell), "{name} is missing");
        }
    }
}

/// The part of a page from this heading to the next.
fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let start = page
        .find(&format!("<h2>{title}"))
        .unwrap_or_else(|| panic!("no section {title:?}"));
    let rest = &page[start + 4..];
    &rest[..rest.find("<h2>").unwrap_or(rest.len())]
}

#[test]
fn the_charts_of_what_was_run_are_there() {
    let charts = |kind: &str, along: &str| {
        let passes = PASSES.json["passes"].as_array().expect("passes").iter();
        let all = passes.flat_map(|p| p["charts"].as_array().expect("charts"));
        all.filter(|c| c["kind"] == kind && (along.is_empty() || c["along"] == along))
            .count()
    };
    for (title, kind, along) in [
        ("Ranges of activations", "range", ""),
        ("Error against rank", "curve", "rank"),
        ("Error against channels removed", "curve", "channels removed"),
    ] {
        let drawn = section(&PASSES.html, title);
        let count = charts(kind, along);
        assert!(count > 0, "{title}: nothing to draw");
        assert_eq!(drawn.matches("<svg").count(), count, "{title}");
        assert_eq!(drawn.matches("<figcaption>").count(), count, "{title}");
    }
    let tried = SEARCH.json["search"].as_array().expect("a search");
    let drawn = section(&SEARCH.html, "Search");
    assert_eq!(
        drawn.matches("<circle").count(),
        tried.len() + 1,
        "a dot each, and a ring"
    );
    for title in [
        "Before and after",
        "Outputs",
        "Size by layer",
        "Sensitivity",
        "What each pass did",
        "Weights",
        "Environment",
    ] {
        section(&PASSES.html, title);
    }
}

#[test]
fn speed_is_told_or_how_to_get_it() {
    assert!(section(&PASSES.html, "Before and after").contains("samples/s"));
    assert!(PASSES.json["speed"]["after"]["median_ms"].as_f64().is_some());
    assert!(section(&SEARCH.html, "Before and after").contains("<code>--bench</code>"));
}

#[test]
fn ranges_say_what_they_cut_off() {
    let passes = PASSES.json["passes"].as_array().expect("passes").iter();
    for c in passes
        .flat_map(|p| p["charts"].as_array().expect("charts"))
        .filter(|c| c["kind"] == "range")
    {
        let pair = |key: &str| [0, 1].map(|i| c[key][i].as_f64().expect("a number"));
        let ([low, high], [least, most]) = (pair("range"), pair("seen"));
        let (scale, clipped) = (
            c["scale"].as_f64().expect("a number"),
            c["clipped"].as_f64().expect("a number"),
        );
        assert!((high - low - 255.0 * scale).abs() < 1e-3 * scale.max(high - low), "{c}");
        assert!((0.0..=1.0).contains(&clipped), "{c}");
        if low - scale <= least && most <= high + scale {
            assert!(clipped < 1e-3, "{c}");
        }
    }
}

#[test]
fn names_that_are_markup_stay_text() {
    const NAME: &str = "<script>alert(1)</script>\"'&<td onclick=x>";
    let weight: Vec<f32> = (0..8 * 4).map(|i| (i as f32 * 0.7).sin()).collect();
    let gemm = |x: &str, w: &str, y: &str, name: &str| {
        let mut n = node("MatMul", &[x, w], &[y]);
        n.name = Some(name.into());
        n
    };
    let weights = vec![floats("<img src=x>", &[4, 8], &weight), floats("w2", &[8, 4], &weight)];
    let nodes = vec![
        gemm("x", "<img src=x>", "<b>", NAME),
        gemm("<b>", "w2", "y", "<td><i onload=alert(2)>"),
    ];
    let model = model_with(nodes, weights, port("x", &[1, 4]), port("y", &[1, 4]));
    let folder = tempfile::tempdir().expect("a folder");
    let [path, page, out] = ["<m>.onnx", "r.html", "o.onnx"].map(|n| folder.path().join(n));
    save(&path, &model);
    let passes = "int8(prefer=size,error=0.9)";
    let args = ["optimize", "--keep", "--passes", passes, "--report"].map(String::from);
    let ran = onnxzip(args.into_iter().chain([arg(&page), arg(&path), arg(&out)]));
    let html = std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("{}{}", ran.out, ran.err));
    sound(&html);
    assert!(html.contains(&escaped(NAME)) && html.contains("&lt;m&gt;.onnx"));
    assert!(
        section(&html, "Ranges of activations").contains("<b>&lt;b&gt;</b>"),
        "{}",
        ran.out
    );
}

/// `key`, `key.inner`, `key[].inner` for everything in a report.
fn keys(v: &Value, path: &str, all: &mut BTreeSet<String>) {
    match v {
        Value::Object(map) => {
            for (k, inner) in map {
                let path = if path.is_empty() {
                    k.clone()
                } else {
                    format!("{path}.{k}")
                };
                all.insert(path.clone());
                keys(inner, &path, all);
            }
        }
        Value::Array(items) => items.iter().for_each(|i| keys(i, &format!("{path}[]"), all)),
        _ => {}
    }
}

#[test]
fn the_page_about_reports_lists_the_keys_of_real_ones_and_no_others() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.md")).expect("the page");
    let rows = text.lines().filter(|l| l.starts_with("| `") && !l.starts_with("| `--"));
    let cell = |l: &str| l.split('|').nth(1).map(str::to_owned);
    let listed: BTreeSet<String> = rows
        .filter_map(cell)
        .flat_map(|c| c.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut real = BTreeSet::new();
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = folder.path().join("r.toml");
    std::fs::write(&recipe, "[[layer]]\nmatch = \"*\"\npasses.int8.per_channel = \"off\"\n").expect("written");
    let refused = pages(
        &["--recipe", &arg(&recipe), "--passes", "int8", "--budget", "sqnr:200dB"],
        &fixture("digits_mlp.onnx"),
        1,
    );
    for p in [&*PASSES, &*SEARCH, &refused] {
        keys(&p.json, "", &mut real);
    }
    let missing: Vec<&String> = real.difference(&listed).collect();
    let gone: Vec<&String> = listed.difference(&real).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not in docs/report.md: {missing:?}; only there: {gone:?}"
    );
}

fn chromium() -> Option<&'static str> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.into_iter().find(|n| {
        Command::new(n)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    });
    if found.is_none() {
        say("SKIPPED: no Chromium here: nobody has looked at the page in a browser");
    }
    found
}

/// What a browser makes of a file: the page after loading, and what it wrote to the console.
fn browse(browser: &str, file: &Path, more: &[&str]) -> (String, String) {
    let own = tempfile::tempdir().expect("a folder");
    let profile = format!("--user-data-dir={}", arg(own.path()));
    let always = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        &profile,
    ];
    let url = format!("file://{}", arg(file));
    let ran = Command::new(browser)
        .args(always)
        .args(more)
        .arg(&url)
        .output()
        .expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (text(ran.stdout), text(ran.stderr))
}

#[test]
fn chromium_shows_all_of_it_without_an_error() {
    let Some(browser) = chromium() else { return };
    for p in [&*PASSES, &*SEARCH] {
        let file = p.folder.path().join("report.html");
        let (dom, log) = browse(browser, &file, &["--dump-dom"]);
        assert!(!log.contains("CONSOLE"), "{log}");
        for what in ["<svg", "<figure>", "<tr", "<details", "<td"] {
            assert_eq!(dom.matches(what).count(), p.html.matches(what).count(), "{what}");
        }
        let pdf = p.folder.path().join("report.pdf");
        browse(browser, &file, &[&format!("--print-to-pdf={}", arg(&pdf))]);
        assert!(pdf.metadata().is_ok_and(|m| m.len() > 10_000), "it can be printed");
    }
}

/// The page in a frame of this width: how wide its content is.
fn content_width(browser: &str, p: &Pages, width: usize) -> usize {
    let page = p.html.replace('&', "&amp;").replace('"', "&quot;");
    let measure =
        "document.title='w'+f.contentDocument.documentElement.scrollWidth;document.body.textContent=document.title";
    let outer = format!(
        "<!doctype html><iframe id=\"f\" width=\"{width}\" height=\"800\" srcdoc=\"{page}\" onload=\"{measure}\"></iframe>"
    );
    let file = p.folder.path().join(format!("frame{width}.html"));
    std::fs::write(&file, outer).expect("written");
    let (dom, _) = browse(browser, &file, &["--dump-dom"]);
    let title = dom.split("<title>w").nth(1).and_then(|t| t.split('<').next());
    title
        .and_then(|t| t.parse().ok())
        .unwrap_or_else(|| panic!("no width in {dom:.300}"))
}

#[test]
fn no_page_is_wider_than_a_phone() {
    let Some(browser) = chromium() else { return };
    for p in [&*PASSES, &*SEARCH] {
        for width in [360, 1200] {
            let content = content_width(browser, p, width);
            assert!(content <= width, "{content} pixels in {width}");
        }
    }
}
