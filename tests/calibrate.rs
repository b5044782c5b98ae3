//! `calibrate` on several machines, here processes: what `optimize --stats` makes of their files is what one run makes.

use crate::tool::{Ran, arg, fixture, onnxzip};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with a model and data in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(model: &str) -> Folder {
        let folder = tempfile::tempdir().expect("a folder");
        for (from, to) in [(model, "model.onnx"), ("digits.npz", "samples.npz")] {
            std::fs::copy(fixture(from), folder.path().join(to)).expect("copied");
        }
        Folder(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.at(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    fn run(&self, command: &str, passes: &str, more: &[&str], stats: &[String]) -> Ran {
        let data = arg(&self.at("samples.npz"));
        let mut args = vec![command, "--passes", passes, "--calib", &data, "--threads", "2"];
        args.extend(more);
        if !stats.is_empty() {
            args.push("--stats");
        }
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args.extend(stats.iter().map(|name| arg(&self.at(name))));
        args.extend(["--".to_owned(), arg(&self.at("model.onnx"))]);
        if command == "optimize" {
            args.push(arg(&self.at("small.onnx")));
        }
        onnxzip(args)
    }

    fn calibrate(&self, passes: &str, shard: &str, out: &str, stats: &[String]) -> String {
        let more = ["--shard", shard, "-o", &arg(&self.at(out))];
        self.run("calibrate", passes, &more, stats).ok()
    }

    fn optimize(&self, passes: &str, stats: &[String]) -> (String, Vec<u8>) {
        let out = self.run("optimize", passes, &["-v"], stats).ok();
        (out, self.bytes("small.onnx"))
    }

    /// Files of three shards.
    fn thirds(&self, passes: &str) -> Vec<String> {
        let part = |k: usize| {
            let name = format!("part{k}.stats");
            self.calibrate(passes, &format!("{k}/3"), &name, &[]);
            name
        };
        (1..=3).map(part).collect()
    }
}

const MEASURED: &str = "measured here";

#[test]
fn three_shards_give_the_bytes_of_one_run_in_any_order_and_twice() {
    let f = Folder::new("digits_cnn.onnx");
    let (said, plain) = f.optimize("int8", &[]);
    assert!(!said.contains("statistics"), "{said}");
    let mut stats = f.thirds("int8");
    stats.reverse();
    stats.push(stats[1].clone());
    let (said, shared) = f.optimize("int8", &stats);
    assert!(!said.contains(MEASURED), "{said}");
    assert!(plain == shared);
    // Other options of the pass ask the same.
    let (said, other) = f.optimize("int8(ranges=mse)", &stats);
    assert!(!said.contains(MEASURED), "{said}");
    assert!(other == f.optimize("int8(ranges=mse)", &[]).1);
}

#[test]
fn a_shard_that_is_missing_is_measured_and_named() {
    let f = Folder::new("digits_mlp.onnx");
    let plain = f.optimize("int8", &[]).1;
    let stats = f.thirds("int8");
    for some in [&stats[..1], &stats[1..2], &[stats[0].clone(), stats[2].clone()]] {
        let (said, shared) = f.optimize("int8", some);
        assert!(said.contains(MEASURED) && said.contains("int8: "), "{said}");
        assert!(plain == shared);
    }
}

#[test]
fn passes_that_ask_one_after_the_other_take_rounds() {
    let f = Folder::new("digits_cnn.onnx");
    let passes = "prune(ratio=0.25),int8";
    let plain = f.optimize(passes, &[]).1;
    let mut stats: Vec<String> = Vec::new();
    let mut asked = Vec::new();
    for round in 1.. {
        let mut new = Vec::new();
        for k in 1..=3 {
            let name = format!("round{round}-{k}.stats");
            let said = f.calibrate(passes, &format!("{k}/3"), &name, &stats);
            if f.at(&name).exists() {
                asked.push(said.split(':').next().expect("a pass").to_owned());
                new.push(name);
            } else {
                assert!(said.contains("nothing is left"), "{said}");
            }
        }
        if new.is_empty() {
            break;
        }
        assert_eq!(new.len(), 3);
        stats.extend(new);
        assert!(round < 9);
    }
    assert!(
        asked[0].starts_with("prune") && asked.last().is_some_and(|a| a.starts_with("int8")),
        "{asked:?}"
    );
    let (said, shared) = f.optimize(passes, &stats);
    assert!(!said.contains(MEASURED), "{said}");
    assert!(plain == shared);
    // Without the last round: the second pass measures itself.
    let (said, shared) = f.optimize(passes, &stats[..stats.len() - 3]);
    assert!(said.contains(MEASURED), "{said}");
    assert!(plain == shared);
}

#[test]
fn the_number_of_threads_and_empty_shards_change_nothing() {
    let f = Folder::new("digits_mlp.onnx");
    for (threads, out) in [("1", "one.stats"), ("3", "three.stats")] {
        let file = arg(&f.at(out));
        let data = arg(&f.at("samples.npz"));
        let model = arg(&f.at("model.onnx"));
        let args = [
            "calibrate",
            "--passes",
            "weights(bits=4)",
            "--calib",
            &data,
            "--shard",
            "2/5",
        ];
        let more = ["--threads", threads, &model, "-o", &file];
        onnxzip(args.iter().chain(&more).copied()).ok();
    }
    assert!(f.bytes("one.stats") == f.bytes("three.stats"));
    let said = f.calibrate("int8", "1/40", "empty.stats", &[]);
    assert!(said.contains(" 0 of "), "{said}");
    let (said, shared) = f.optimize("int8", &["empty.stats".to_owned()]);
    assert!(said.contains(MEASURED), "{said}");
    assert!(shared == f.optimize("int8", &[]).1);
}

/// What is said when it fails.
fn refused(ran: Ran) -> String {
    assert_eq!(ran.code, Some(2), "{}{}", ran.out, ran.err);
    ran.err
}

#[test]
fn files_of_another_run_are_refused_and_say_what_differs() {
    let f = Folder::new("digits_mlp.onnx");
    let stats = f.thirds("int8");
    let said = |f: &Folder, passes: &str| refused(f.run("optimize", passes, &[], &stats));
    let other = said(&f, "prune(error=0.01)");
    assert!(
        other.contains("part1.stats") && other.contains("for the passes simplify,int8"),
        "{other}"
    );
    std::fs::copy(fixture("digits_cnn.onnx"), f.at("model.onnx")).expect("copied");
    let other = said(&f, "int8");
    assert!(
        other.contains("part1.stats") && other.contains("another model"),
        "{other}"
    );
    std::fs::copy(fixture("digits_mlp.onnx"), f.at("model.onnx")).expect("copied");
    reverse(&f);
    let other = said(&f, "int8");
    assert!(other.contains(".stats: other data: sample"), "{other}");
    assert!(!f.at("small.onnx").exists());
}

/// Puts the samples into the other order.
fn reverse(f: &Folder) {
    use onnxzip::data::Dataset;
    let model = onnxzip::onnx::read(&f.at("model.onnx")).expect("a model");
    let data = Dataset::open(&f.at("samples.npz"), &model).expect("samples");
    let mut all: Vec<f32> = Vec::new();
    for i in (0..data.len()).rev() {
        all.extend(data.get(i).expect("a sample")["image"].floats().expect("floats").iter());
    }
    npz(&f.at("samples.npz"), "image", &[data.len(), 1, 28, 28], &all);
}

/// Writes one array of this name.
pub fn npz(path: &Path, name: &str, dims: &[usize], data: &[f32]) {
    use std::io::Write;
    let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
    let mut head = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}",
        dims.join(", ")
    );
    while (10 + head.len() + 1) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut zip = zip::ZipWriter::new(std::fs::File::create(path).expect("a file"));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file(format!("{name}.npy"), options).expect("an entry");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((head.len() as u16).to_le_bytes());
    bytes.extend(head.as_bytes());
    bytes.extend(data.iter().flat_map(|x| x.to_le_bytes()));
    zip.write_all(&bytes).expect("written");
    zip.finish().expect("written");
}

#[test]
fn damaged_files_are_refused_by_name() {
    let f = Folder::new("digits_mlp.onnx");
    f.calibrate("int8", "1/8", "part.stats", &[]);
    let good = f.bytes("part.stats");
    let wrong = |bytes: &[u8], what: &str| {
        std::fs::write(f.at("part.stats"), bytes).expect("written");
        let said = refused(f.run("optimize", "int8", &[], &["part.stats".to_owned()]));
        assert!(said.contains("part.stats: ") && said.contains(what), "{said}");
    };
    let mut version = good.clone();
    version[8] = 9;
    wrong(&version, "version 9");
    wrong(&good[..good.len() - 1], "cut short");
    wrong(&good[..good.len() / 2], "cut short");
    wrong(b"", "no statistics file");
    wrong(b"PK\x03\x04 something else", "no statistics file");
    for at in [good.len() / 3, good.len() / 2, good.len() - 30] {
        let mut changed = good.clone();
        changed[at] ^= 4;
        wrong(&changed, "");
    }
    let mut longer = good.clone();
    longer.push(0);
    wrong(&longer, "behind its end");
    std::fs::remove_file(f.at("part.stats")).expect("removed");
    let said = refused(f.run("optimize", "int8", &[], &["part.stats".to_owned()]));
    assert!(said.contains("part.stats"), "{said}");
}

#[test]
fn usage_is_explained() {
    let f = Folder::new("digits_mlp.onnx");
    for (shard, what) in [
        ("0/3", "counted from 1"),
        ("4/3", "1/3 to 3/3"),
        ("3", "the third of eight"),
    ] {
        let more = ["--shard", shard, "-o", "x"];
        let said = refused(f.run("calibrate", "int8", &more, &[]));
        assert!(said.contains(what), "{said}");
    }
    let file = arg(&f.at("part.stats"));
    let model = arg(&f.at("model.onnx"));
    let said = refused(onnxzip(["calibrate", "--passes", "int8", &model, "-o", &file]));
    assert!(said.contains("--calib"), "{said}");
    let data = arg(&f.at("samples.npz"));
    let said = refused(onnxzip(["calibrate", "--calib", &data, &model, "-o", &file]));
    assert!(said.contains("--passes"), "{said}");
    let said = f.run("calibrate", "simplify", &["-o", &file], &[]).ok();
    assert!(
        said.contains("nothing is left") && !f.at("part.stats").exists(),
        "{said}"
    );
}

#[test]
fn a_recipe_names_statistics() {
    let f = Folder::new("digits_mlp.onnx");
    let plain = f.optimize("int8", &[]).1;
    f.thirds("int8");
    let recipe = "passes = \"int8\"\ninput = \"model.onnx\"\noutput = \"again.onnx\"\n[data]\ncalib = \"samples.npz\"\n\
                  stats = [\"part1.stats\", \"part2.stats\", \"part3.stats\"]\n";
    std::fs::write(f.at("onnxzip.toml"), recipe).expect("written");
    let said = onnxzip(["optimize", "-v", "--recipe", &arg(&f.at("onnxzip.toml"))]).ok();
    assert!(!said.contains(MEASURED), "{said}");
    assert!(plain == f.bytes("again.onnx"));
}

/// The blocks of shell commands of a page.
fn blocks(page: &str) -> Vec<&str> {
    let all = page.split("\n```sh\n").skip(1);
    all.filter_map(|rest| rest.split("\n```").next()).collect()
}

#[test]
fn the_commands_of_the_page_do_what_it_says() {
    let page = include_str!("../docs/calibrate.md");
    let tool = Path::new(env!("CARGO_BIN_EXE_onnxzip")).parent().expect("a folder");
    let path = format!("{}:{}", tool.display(), std::env::var("PATH").unwrap_or_default());
    let mut run = 0;
    for block in blocks(page) {
        let needs = block.split_whitespace().next().unwrap_or_default();
        let found = Command::new("sh").args(["-c", &format!("command -v {needs}")]).output();
        if needs == "parallel" && !found.expect("a shell").status.success() {
            continue;
        }
        let f = Folder::new("digits_cnn.onnx");
        let passes = if block.contains("prune") {
            "prune(ratio=0.25),int8"
        } else {
            "int8"
        };
        let plain = f.optimize(passes, &[]).1;
        std::fs::remove_file(f.at("small.onnx")).expect("removed");
        let script = format!("set -e\n{block}\n");
        let ran = Command::new("sh")
            .args(["-c", &script])
            .current_dir(f.0.path())
            .env("PATH", &path)
            .output();
        let ran = ran.expect("a shell");
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success() && !said.contains(MEASURED), "{block}\n{said}");
        assert!(plain == f.bytes("small.onnx"), "{block}");
        run += 1;
    }
    assert!(run >= 2);
}
