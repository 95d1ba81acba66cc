//! The `unflip` command. Everything is in the library; this picks the exit code.

fn main() -> std::process::ExitCode {
    unflip::cli::main()
}
