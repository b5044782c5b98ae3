//! The account as Markdown, for the summary of a job or a comment.

use super::text::{all_rows, bytes, outcome};
use super::{Report, Tried};
use std::fmt::Write;

/// Renders a report.
pub fn render(r: &Report) -> String {
    let mut out = String::new();
    let mark = if r.exit_code() == 0 { "✅" } else { "❌" };
    let _ = writeln!(out, "### {mark} onnxzip: `{}`\n", escaped(&r.input));
    let _ = writeln!(out, "{}\n", escaped(&outcome(r)));
    let _ = writeln!(out, "| | before | after | |\n|---|---:|---:|---:|");
    for (name, x, y, ratio) in all_rows(r) {
        let _ = writeln!(out, "| {name} | {x} | {y} | {ratio} |");
    }
    outputs(&mut out, r);
    search(&mut out, r);
    for w in &r.warnings {
        let _ = writeln!(out, "\n> ⚠️ {}", escaped(w));
    }
    let _ = writeln!(
        out,
        "\n<details><summary>The same again: <code>onnxzip.toml</code></summary>\n\n{}\n</details>",
        fenced(&r.recipe())
    );
    let passes: Vec<String> = r.passes.iter().map(|p| format!("`{}`", p.pass)).collect();
    let _ = writeln!(
        out,
        "\nPasses: {}. onnxzip {}, {:.1} s.",
        passes.join(", "),
        r.version,
        r.seconds
    );
    out
}

fn outputs(out: &mut String, r: &Report) {
    let shown: Vec<_> = r.gaps.iter().filter(|g| !g.inner).collect();
    if shown.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n| output | SQNR | cosine | same class | accuracy |\n|---|---:|---:|---:|---:|"
    );
    for g in shown {
        let percent = |x: f64| format!("{:.2} %", x * 100.0);
        let accuracy = g
            .accuracy
            .as_ref()
            .map(|a| format!("{} → {}", percent(a.before), percent(a.after)));
        let _ = writeln!(
            out,
            "| {} | {} | {:.5} | {} | {} |",
            escaped(&g.name),
            super::text::db(g.sqnr_db),
            g.cosine,
            g.top1.map_or_else(String::new, percent),
            accuracy.unwrap_or_default()
        );
    }
    for (g, same) in r.gaps.iter().filter_map(|g| Some((g, g.same_choice?))) {
        let _ = writeln!(
            out,
            "\nOf what is chosen inside the model at `{}`, {:.1} % is the same; all else was compared under the original's choice.",
            escaped(&g.name),
            same * 100.0
        );
    }
}

fn search(out: &mut String, r: &Report) {
    if r.search.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "\n<details><summary>{} results were measured</summary>\n",
        r.search.len()
    );
    let _ = writeln!(out, "| | bytes | budget used | passes |\n|---|---:|---:|---|");
    let row = |t: &Tried| {
        let mark = if t.chosen { "★" } else { "" };
        format!(
            "| {mark} | {} | {:.0} % | `{}` |",
            bytes(t.bytes),
            t.used * 100.0,
            t.passes
        )
    };
    for t in &r.search {
        let _ = writeln!(out, "{}", row(t));
    }
    let _ = writeln!(out, "\n</details>");
}

/// A block of code, behind more backticks than it holds.
fn fenced(code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}toml\n{code}{fence}")
}

/// Text that Markdown leaves alone.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '#' | '\\') {
            out.push('\\');
        }
        out.push(if c.is_control() { ' ' } else { c });
    }
    out
}
