//! Drawings as SVG. Words stand in them only where they were made here: names from a model are set beside them.

use super::super::text::bytes;
use super::page::escaped;
use crate::passes::charts::{Curve, Range};
use crate::passes::parts;
use crate::report::Tried;
use plotters::coord::Shift;
use plotters::prelude::*;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The colours of text and of lines behind; the style gives others in the dark.
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const LINE: RGBColor = RGBColor(0xd8, 0xde, 0xe4);
const RED: RGBColor = RGBColor(0xe5, 0x48, 0x4d);
/// Colours that can be told apart on white and on black.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x3b, 0x82, 0xf6),
    RGBColor(0xd6, 0x40, 0x9f),
    RGBColor(0xd9, 0x77, 0x06),
    RGBColor(0x16, 0xa3, 0x4a),
    RGBColor(0x8b, 0x5c, 0xf6),
    RGBColor(0x08, 0x91, 0xb2),
    RGBColor(0x6b, 0x72, 0x80),
];

/// A drawing of `size` pixels that can be read aloud as `words`; nothing when it cannot be drawn.
fn svg(size: (u32, u32), words: &str, draw: impl FnOnce(&Area) -> Drawn) -> String {
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, size).into_drawing_area();
        if draw(&area).is_err() || area.present().is_err() {
            return String::new();
        }
    }
    let head = format!("<svg role=\"img\" aria-label=\"{}\" ", escaped(words));
    out = out.replacen("<svg ", &head, 1);
    // The namespace is known inside HTML, the style names the font, the others are what SVG assumes.
    for spare in SPARE {
        out = out.replace(spare, "");
    }
    out
}

const SPARE: [&str; 4] = [
    " xmlns=\"http://www.w3.org/2000/svg\"",
    " font-family=\"sans-serif\"",
    " opacity=\"1\"",
    " stroke-width=\"1\"",
];

/// Letters of so many pixels.
fn font<'a>(size: u32) -> TextStyle<'a> {
    // plotters divides by this to get what it calls pixels.
    ("sans-serif", f64::from(size) * 1.24).into_font().color(&INK)
}

/// The passes of a result without their options: `prune + int8`.
pub fn family(passes: &str) -> String {
    let names: Vec<&str> = parts(passes).filter_map(|p| p.split('(').next()).collect();
    names.join(" + ")
}

/// The families of what was tried, in order, with their colours as CSS has them.
pub fn families(tried: &[Tried]) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for t in tried {
        let name = family(&t.passes);
        if all.iter().all(|f| f.0 != name) {
            let RGBColor(r, g, b) = COLOURS[all.len() % COLOURS.len()];
            all.push((name, format!("#{r:02x}{g:02x}{b:02x}")));
        }
    }
    all
}

/// Those that no other beats in bytes and in the budget used, the smallest first.
pub fn front(tried: &[Tried]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tried.len()).filter(|&i| tried[i].used.is_finite()).collect();
    order.sort_by(|&a, &b| (tried[a].bytes.cmp(&tried[b].bytes)).then(tried[a].used.total_cmp(&tried[b].used)));
    let mut best = f64::INFINITY;
    order.retain(|&i| {
        let better = tried[i].used < best;
        best = best.min(tried[i].used);
        better
    });
    order
}

/// Part of the budget used against bytes: one dot for each result, with its number; those that were refused are hollow.
pub fn pareto(tried: &[Tried]) -> String {
    let x = |t: &Tried| (t.bytes.max(1) as f64 / 1000.0).log2();
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for t in tried {
        (low, high) = (low.min(x(t)), high.max(x(t)));
    }
    let pad = 0.06 * (high - low).max(0.5);
    let (low, high) = (low - pad, high + pad);
    let used = tried
        .iter()
        .map(|t| t.used)
        .filter(|u| u.is_finite())
        .fold(0.0, f64::max);
    let top = (1.1 * used).clamp(1.2, 2.0);
    let y = |t: &Tried| t.used.clamp(0.0, top);
    let names: Vec<String> = families(tried).into_iter().map(|f| f.0).collect();
    let colour = |t: &Tried| COLOURS[names.iter().position(|n| *n == family(&t.passes)).unwrap_or(0) % COLOURS.len()];
    let words = "part of the budget used against bytes, for all results that were measured";
    svg((440, 320), words, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(low..high, 0.0..top)?;
        chart
            .configure_mesh()
            .x_desc("size of the file (logarithmic)")
            .y_desc("of the budget used")
            .x_labels(5)
            .y_labels(6)
            .x_label_formatter(&|v| bytes((1000.0 * v.exp2()).round() as u64))
            .y_label_formatter(&|v| format!("{:.0} %", 100.0 * v))
            .label_style(font(12))
            .axis_desc_style(font(13))
            .set_all_tick_mark_size(3)
            .axis_style(INK)
            .bold_line_style(LINE)
            .light_line_style(TRANSPARENT)
            .draw()?;
        chart.draw_series(LineSeries::new([(low, 1.0), (high, 1.0)], RED.stroke_width(2)))?;
        let edge: Vec<(f64, f64)> = front(tried).into_iter().map(|i| (x(&tried[i]), y(&tried[i]))).collect();
        chart.draw_series(LineSeries::new(edge, COLOURS[6].stroke_width(1)))?;
        let mut labels: Vec<(i32, i32)> = Vec::new();
        for (i, t) in tried.iter().enumerate() {
            let at = (x(t), y(t));
            let style: ShapeStyle = match t.refused {
                Some(_) => colour(t).stroke_width(2),
                None => colour(t).filled(),
            };
            chart.draw_series([Circle::new(at, 5, style)])?;
            if t.chosen {
                chart.draw_series([Circle::new(at, 9, INK.stroke_width(2))])?;
            }
            let dot = chart.backend_coord(&at);
            let free = |p: &(i32, i32)| labels.iter().all(|l| (l.0 - p.0).abs() > 15 || (l.1 - p.1).abs() > 12);
            let places = [(10, -14), (10, 4), (-18, -14), (-18, 4), (-4, -22), (-4, 10)];
            let place = places.map(|(dx, dy)| (dot.0 + dx, dot.1 + dy)).into_iter().find(free);
            let place = place.unwrap_or((dot.0 + 10, dot.1 - 14));
            labels.push(place);
            area.draw(&Text::new((i + 1).to_string(), place, font(12)))?;
        }
        Ok(())
    })
}

/// A distribution, the logarithm of counts, and the two ends of the range as lines.
pub fn distribution(r: &Range) -> String {
    const SIZE: (u32, u32) = (320, 72);
    const FLOOR: i32 = SIZE.1 as i32 - 4;
    let [low, high] = r.hull();
    let most = r
        .bins
        .iter()
        .copied()
        .fold(0.0, f64::max)
        .ln_1p()
        .max(f64::MIN_POSITIVE);
    let width = f64::from(SIZE.0 - 8);
    let x = |part: f64| 4 + (part * width).round() as i32;
    let place = |v: f64| x(((v - low) / (high - low).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0));
    let words = format!("distribution; range {:.4} to {:.4}", r.range[0], r.range[1]);
    svg(SIZE, &words, |area| {
        let mut outline = vec![(x(0.0), FLOOR)];
        for (i, n) in r.bins.iter().enumerate() {
            let top = FLOOR - (n.ln_1p() / most * f64::from(FLOOR - 4)).round() as i32;
            let edge = |k: usize| x(k as f64 / r.bins.len() as f64);
            outline.extend([(edge(i), top), (edge(i + 1), top)]);
        }
        outline.push((x(1.0), FLOOR));
        area.draw(&Polygon::new(outline, COLOURS[0].filled()))?;
        area.draw(&PathElement::new(
            [(x(0.0), FLOOR), (x(1.0), FLOOR)],
            INK.stroke_width(1),
        ))?;
        for end in r.range {
            area.draw(&PathElement::new(
                [(place(end), 0), (place(end), FLOOR + 3)],
                RED.stroke_width(2),
            ))?;
        }
        Ok(())
    })
}

/// Error against what is chosen; what could be done are dots, what was done is ringed.
pub fn ladder(c: &Curve) -> String {
    /// Less than this is nothing.
    const LEAST: f64 = -60.0;
    let shown = || c.points.iter().copied().filter(|p| p[1] > LEAST);
    let all = || shown().chain(c.rungs.iter().map(|r| [r.at, r.error_db]));
    let right = all().map(|p| p[0]).fold(1.0, f64::max) * 1.05;
    let db = |y: f64| y.clamp(LEAST, 30.0);
    let top = all().map(|p| db(p[1])).fold(LEAST, f64::max);
    let bottom = all().map(|p| db(p[1])).fold(top - 3.0, f64::min);
    let (bottom, top) = (bottom - 2.0, top + 2.0);
    let words = format!("{} against {}", c.of, c.along);
    svg((320, 180), &words, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .x_label_area_size(36)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..right, bottom..top)?;
        chart
            .configure_mesh()
            .x_desc(c.along)
            .y_desc("error, dB")
            .x_labels(5)
            .y_labels(4)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&|v| format!("{v:.0}"))
            .label_style(font(11))
            .axis_desc_style(font(11))
            .set_all_tick_mark_size(3)
            .axis_style(INK)
            .bold_line_style(LINE)
            .light_line_style(TRANSPARENT)
            .draw()?;
        let line = shown().map(|p| (p[0], db(p[1])));
        chart.draw_series(LineSeries::new(line, COLOURS[0].stroke_width(2)))?;
        for r in &c.rungs {
            let at = (r.at, db(r.error_db));
            chart.draw_series([Circle::new(at, 3, COLOURS[2].filled())])?;
            if r.chosen {
                chart.draw_series([Circle::new(at, 6, RED.stroke_width(2))])?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(passes: &str, bytes: u64, used: f64) -> Tried {
        Tried {
            passes: passes.into(),
            bytes,
            used,
            sqnr_db: 20.0,
            chosen: passes == "e",
            refused: (used > 1.0).then(|| "<too much>".into()),
            ..Tried::default()
        }
    }

    #[test]
    fn the_front_holds_what_nothing_beats() {
        let all = [
            tried("a", 100, 0.1),
            tried("b", 50, 0.5),
            tried("c", 60, 0.6),
            tried("d", 40, f64::INFINITY),
            tried("e", 40, 0.9),
        ];
        assert_eq!(front(&all), [4, 1, 0]);
        assert_eq!(families(&all).len(), 5);
        assert_eq!(family("prune(error=0.1,by=l2),int8"), "prune + int8");
        let drawn = pareto(&all);
        assert!(drawn.starts_with("<svg role=") && drawn.matches("<circle").count() == 6 && !drawn.contains("http"));
    }

    #[test]
    fn what_cannot_be_drawn_to_scale_is_drawn_all_the_same() {
        for (range, seen) in [
            ([0.0, 0.0], [0.0, 0.0]),
            ([-1e30, 1e30], [0.0, 1.0]),
            ([0.0, f64::INFINITY], [0.0, 1.0]),
        ] {
            let r = Range {
                value: String::new(),
                method: String::new(),
                range,
                seen,
                clipped: 0.0,
                zeros: 0.0,
                scale: 1.0,
                zero_point: 0,
                codes: "u8",
                sqnr_db: 0.0,
                bins: vec![0.0; 64],
            };
            assert!(distribution(&r).ends_with("</svg>\n"), "{range:?}");
        }
        let c = Curve {
            node: String::new(),
            along: "rank",
            of: "error",
            points: vec![[1.0, -300.0]],
            rungs: Vec::new(),
        };
        assert!(ladder(&c).ends_with("</svg>\n"));
        assert!(pareto(&[tried("a", 0, f64::INFINITY)]).ends_with("</svg>\n"));
    }
}
