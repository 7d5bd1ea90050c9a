//! Parses the command line and calls one function per verb.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cellgate::cli::Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("cellgate: {}", cellgate::cli::told(&error));
            ExitCode::FAILURE
        }
    }
}
