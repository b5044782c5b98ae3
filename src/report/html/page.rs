//! The pieces of the page: its style, tables, lists that fold, and text that cannot become markup.

/// One style for a screen, a phone, the dark and paper. What is folded on a screen is open in print.
pub const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#57606a;--line:#d8dee4;--soft:#f6f8fa;--on:#fff8c5;\
--ok:#e6f6ec;--bad:#ffebe9}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#9198a1;--line:#30363d;--soft:#161b22;--on:#3b2f00;\
--ok:#0f2a19;--bad:#3c1618}}\
*{box-sizing:border-box}\
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem;color:var(--ink);background:var(--paper)}\
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .6rem;border-bottom:1px solid var(--line)}\
p{margin:.5rem 0;overflow-wrap:anywhere}.faint{color:var(--faint);font-size:.9em}\
.verdict{padding:.8rem 1rem;border-radius:.5rem;border-left:.4rem solid;white-space:pre-line}\
.ok{background:var(--ok);border-color:#1a7f37}.bad{background:var(--bad);border-color:#cf222e}\
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.6rem}\
.tile{background:var(--soft);border:1px solid var(--line);border-radius:.5rem;padding:.5rem .8rem}\
.tile b{display:block;font-size:1.4rem;line-height:1.3}.tile span{color:var(--faint);font-size:.85rem}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{padding:.25rem .6rem;text-align:right;\
border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}th:first-child,td:first-child,.l{text-align:left}\
th{color:var(--faint);font-weight:600;font-size:.9em}td.l{white-space:normal;overflow-wrap:anywhere;min-width:9rem}tr.on{background:var(--on)}\
.bars{min-width:7rem;vertical-align:middle}.bar{display:block;height:.4rem;min-width:1px;border-radius:.2rem;background:#3b82f6}\
.bar.was{background:#9ca3af;margin-bottom:.1rem}.bar.n{background:#d6409f}\
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.35em}.key{margin-right:1rem;white-space:nowrap}\
svg{display:block;max-width:100%;height:auto}.big svg{width:100%;max-width:36rem}\
svg [stroke=\"#24292F\"]{stroke:var(--ink)}svg [fill=\"#24292F\"]{fill:var(--ink)}svg text{fill:var(--ink)}\
svg [stroke=\"#D8DEE4\"]{stroke:var(--line)}\
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.8rem}\
figure{margin:0;padding:.5rem;border:1px solid var(--line);border-radius:.5rem;min-width:0;break-inside:avoid}\
figure svg{width:100%}figcaption{font-size:.8rem;line-height:1.45;overflow-wrap:anywhere}figcaption b{display:block}\
.ends{display:flex;justify-content:space-between;color:var(--faint)}\
details{margin:.5rem 0}summary{cursor:pointer}ul{padding-left:1.2rem;margin:.4rem 0}li{overflow-wrap:anywhere;list-style:none;text-indent:-1.1rem}\
pre{overflow-x:auto;background:var(--soft);padding:.6rem;border-radius:.4rem}code{overflow-wrap:anywhere}\
@media screen and (max-width:40rem){body{font-size:14px;padding:.7rem}th,td{padding:.2rem .35rem}.bars{min-width:4rem}\
.tiles{grid-template-columns:1fr 1fr}.tile b{font-size:1.15rem}\
.cards,.cards tbody{display:block}.cards thead{display:none}.cards tr{display:grid;grid-template-columns:repeat(3,1fr);\
border-bottom:1px solid var(--line);padding:.35rem 0}.cards td{border:0;text-align:left;padding:.1rem .35rem;white-space:normal;overflow-wrap:anywhere}\
.cards td.l,.cards td.bars{grid-column:1/-1}.cards td.l{font-weight:600}.cards td .faint{font-weight:400}.cards td:not(.l):not(.bars)::before{content:attr(data-h);display:block;color:var(--faint);font-size:.8em}}\
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff;--faint:#444;--line:#ccc;--soft:#fff;--on:#fff8c5;--ok:#e6f6ec;--bad:#ffebe9}\
body{font-size:10pt;max-width:none;padding:0;print-color-adjust:exact;-webkit-print-color-adjust:exact}\
details::details-content{content-visibility:visible;display:block;height:auto}\
.wide{overflow:visible}th,td{padding:.1rem .4rem}table{font-size:.92em}pre{white-space:pre-wrap}\
.gallery{grid-template-columns:repeat(3,1fr);gap:.4rem}figcaption{font-size:.72rem}.tiles{grid-template-columns:repeat(auto-fit,minmax(7rem,1fr))}.tile b{font-size:1.1rem}h2,h2+p{break-after:avoid}tr,.tile{break-inside:avoid}thead{display:table-header-group}}";

/// A cell of a table: its class, and what stands in it.
pub struct Cell(&'static str, String);

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell("", escaped(&text))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Cell {
        Cell("", escaped(text))
    }
}

impl Cell {
    /// Text that may be long: it wraps, and on a phone has a line of its own.
    pub fn long(text: &str) -> Cell {
        Cell("l", escaped(text))
    }

    /// A list that wraps behind its commas, perhaps with a remark below.
    pub fn list(text: &str, remark: Option<&str>) -> Cell {
        let below = remark.map(|r| format!("<br><span class=\"faint\">{}</span>", escaped(r)));
        Cell("l", escaped(text).replace(',', ",<wbr>") + &below.unwrap_or_default())
    }

    /// Bars, one below the other: parts of 1, and their classes.
    pub fn bars(bars: &[(f64, &str)]) -> Cell {
        let bar = |(part, class): &(f64, &str)| {
            let width = (part.clamp(0.0, 1.0) * 100.0).max(0.3);
            format!("<span class=\"bar {class}\" style=\"width:{width:.1}%\"></span>")
        };
        Cell("bars", bars.iter().map(bar).collect())
    }

    /// As markup under this heading.
    fn under(&self, head: &str) -> String {
        let class = match self.0 {
            "" => String::new(),
            class => format!(" class=\"{class}\""),
        };
        let head = match head {
            "" => String::new(),
            head => format!(" data-h=\"{head}\""),
        };
        format!("<td{class}{head}>{}</td>", self.1)
    }
}

/// A row, and whether it stands out.
pub type Row = (bool, Vec<Cell>);

/// A table. On a phone its rows become cards when they are long.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Row>) -> String {
    let class = if head.len() > 4 { "cards" } else { "rows" };
    let mut out = format!("<div class=\"wide\"><table class=\"{class}\">");
    let rows: Vec<Row> = rows.into_iter().collect();
    if head.iter().any(|h| !h.is_empty()) {
        out += "<thead><tr>";
        for (i, h) in head.iter().enumerate() {
            let long = rows.first().is_some_and(|r| r.1.get(i).is_some_and(|c| c.0 == "l"));
            out += &format!("<th{}>{h}</th>", if long { " class=\"l\"" } else { "" });
        }
        out += "</tr></thead>";
    }
    out += "<tbody>";
    for (on, cells) in rows {
        out += if on { "<tr class=\"on\">" } else { "<tr>" };
        cells.iter().zip(head).for_each(|(c, h)| out += &c.under(h));
        out += "</tr>";
    }
    out + "</tbody></table></div>"
}

/// A table whose first rows are shown, the others folded.
pub fn folded(head: &[&str], mut rows: Vec<Row>, shown: usize, what: &str) -> String {
    let rest = rows.split_off(rows.len().min(shown));
    let mut out = table(head, rows);
    if !rest.is_empty() {
        out += &details(&format!("{} more {what}", rest.len()), &table(head, rest));
    }
    out
}

/// Figures side by side: the first are shown, the others folded; what goes beyond `most` is left out, and it is said.
pub fn gallery(mut figures: Vec<String>, shown: usize, most: usize, what: &str) -> String {
    let wrap = |all: &[String]| format!("<div class=\"gallery\">{}</div>", all.concat());
    let left_out = figures.len().saturating_sub(most);
    figures.truncate(most);
    let rest = figures.split_off(figures.len().min(shown));
    let mut out = wrap(&figures);
    if !rest.is_empty() {
        out += &details(&format!("{} more {what}", rest.len()), &wrap(&rest));
    }
    if left_out > 0 {
        out += &format!("<p class=\"faint\">{left_out} more are in the JSON report.</p>");
    }
    out
}

/// Something that opens; `summary` and `body` are markup.
pub fn details(summary: &str, body: &str) -> String {
    format!("<details><summary>{summary}</summary>{body}</details>")
}

/// Text that means itself, in an element and in an attribute.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_markup_in_a_cell_stays_text() {
        let row = vec![Cell::from("<td><script>"), Cell::long("\"a\" & b"), "Conv".into()];
        let t = table(&["x", "", ""], [(false, row)]);
        assert!(
            t.contains(
                "<td data-h=\"x\">&lt;td&gt;&lt;script&gt;</td><td class=\"l\">&quot;a&quot; &amp; b</td><td>Conv</td>"
            ),
            "{t}"
        );
    }

    #[test]
    fn long_lists_fold_and_keep_all_rows() {
        let rows = |n: usize| (0..n).map(|i| (false, vec![Cell::from(i.to_string())])).collect();
        assert!(!folded(&["x"], rows(3), 3, "rows").contains("<details>"));
        let long = folded(&["x"], rows(10), 3, "rows");
        assert!(long.contains("7 more rows") && (0..10).all(|i| long.contains(&format!(">{i}</td>"))));
        let figures = (0..10).map(|i| format!("<figure>{i}</figure>")).collect();
        assert!(gallery(figures, 2, 8, "layers").contains("2 more are in the JSON report"));
    }
}
