//! The pass `lowrank` on embedding tables and recurrent layers, where that is asked for.

use super::{Numbers, close, info, open_layer, outputs, run};
use crate::tool::samples;
use onnxzip::ir::{Attr, Model, Tensor, ValueId};
use onnxzip::passes::NoteKind;

/// A model that reads rows of a table by numbers in floating point.
fn reader(table: Tensor) -> (Model, ValueId) {
    let (mut model, numbers) = open_layer(13, "Cast", &[1, 6], vec![None], vec![Attr::int("to", 7)]);
    let main = model.main_id();
    let table = model.add_const(main, "table", table);
    let (_, y) = model.add_node(main, "read", "Gather", &[Some(table), Some(numbers)], &["rows"], vec![]);
    (model, y[0])
}

/// Sixty samples of six row numbers below `most`.
fn numbers(most: f32) -> Vec<f32> {
    let all = Numbers(8).take(360);
    all.iter().map(|x| ((x + 1.0) * 0.5 * most).floor()).collect()
}

#[test]
fn a_table_of_low_rank_becomes_a_thin_one_and_a_product_when_asked() {
    let mut r = Numbers(1);
    let (mut model, rows) = reader(Tensor::new(&[200, 64], r.of_rank(200, 64, 6)));
    model.add_output(model.main_id(), info("y", &[1, 6, 64]), rows);
    // Only the first 50 rows are ever read: the others must come through as well.
    let data = samples(&model, &[60, 1, 6], &numbers(50.0));
    let elsewhere = samples(&model, &[60, 1, 6], &numbers(200.0));
    let before = outputs(&model, &elsewhere);
    run(&mut model, &data, "lowrank(error=1e-6)");
    assert_eq!(model.nodes().count(), 2, "off by default");
    let notes = run(&mut model, &data, "lowrank(error=1e-6,tables=on)");
    assert_eq!(notes[0].kind, NoteKind::Did, "{notes:?}");
    assert!(notes[0].what.contains("table 200×64 → rank 8"), "{notes:?}");
    close(&before, &outputs(&model, &elsewhere), 1e-4);
    let ops: Vec<&str> = model.nodes().map(|(_, n)| n.op.name.as_str()).collect();
    assert_eq!(ops, ["Cast", "Gather", "MatMul"]);
}

#[test]
fn a_table_that_would_not_get_smaller_or_is_read_otherwise_stays() {
    let mut r = Numbers(2);
    let (mut model, rows) = reader(Tensor::new(&[200, 64], r.take(200 * 64)));
    model.add_output(model.main_id(), info("y", &[1, 6, 64]), rows);
    let data = samples(&model, &[60, 1, 6], &numbers(200.0));
    let notes = run(&mut model, &data, "lowrank(error=1e-4,tables=on)");
    assert!(notes[0].what.contains("there is a gain"), "{notes:?}");
    let (mut model, rows) = reader(Tensor::new(&[200, 64], r.of_rank(200, 64, 6)));
    let main = model.main_id();
    let table = model.node(model.node_ids()[1]).input(0);
    let (_, y) = model.add_node(main, "tied", "Add", &[table, table], &["tied"], vec![]);
    model.add_output(main, info("y", &[1, 6, 64]), rows);
    model.add_output(main, info("z", &[200, 64]), y[0]);
    run(&mut model, &data, "lowrank(error=1e-6,tables=on)");
    assert_eq!(model.nodes().count(), 3);
}

#[test]
fn the_input_weights_of_recurrent_layers_are_one_map_for_all_gates_and_directions() {
    let mut r = Numbers(3);
    for (op, gates, directions) in [("LSTM", 4, 1), ("GRU", 3, 1), ("LSTM", 4, 2)] {
        let rows = directions * gates * 24;
        let w = Tensor::new(&[directions, gates * 24, 80], r.of_rank(rows, 80, 6));
        let recurrent = r.take(rows * 24).iter().map(|x| 0.2 * x).collect::<Vec<_>>();
        let recurrent = Tensor::new(&[directions, gates * 24, 24], recurrent);
        let direction = if directions == 2 { "bidirectional" } else { "forward" };
        let attrs = vec![Attr::int("hidden_size", 24), Attr::string("direction", direction)];
        let (mut model, y) = open_layer(13, op, &[4, 1, 80], vec![None, Some(w), Some(recurrent)], attrs);
        model.add_output(model.main_id(), info("y", &[4, directions, 1, 24]), y);
        let data = samples(&model, &[40, 4, 1, 80], &r.take(40 * 320));
        let notes = run(&mut model.clone(), &data, "lowrank(error=1e-6)");
        assert!(notes.iter().all(|n| n.kind != NoteKind::Did), "off by default");
        let mut changed = model.clone();
        let notes = run(&mut changed, &data, "lowrank(error=1e-6,recurrent=on)");
        assert!(notes.iter().any(|n| n.what.contains("80 → rank 8")), "{op} {notes:?}");
        assert_eq!(changed.nodes().count(), 2);
        // Reverse recurrences are not run by the engine of the tests.
        if directions == 1 {
            close(&outputs(&model, &data), &outputs(&changed, &data), 1e-4);
        }
    }
}
