//! The `onnxzip` command.

fn main() -> std::process::ExitCode {
    onnxzip::cli::main().into()
}
