//! The command line: one file a verb. Printing and progress live here only.

mod backbone;
mod bench;
mod bundle;
mod calibrate;
mod camera;
mod data;
mod demo;
mod doctor;
mod engine;
mod eval;
mod fit;
mod fleet;
mod inspect;
mod judging;
mod merge;
mod model;
mod run;
mod shared;
mod synth;
mod train;
mod update;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::simd::Isa;

/// Electroluminescence inspection of solar cells: from an EL image to a verdict.
#[derive(Debug, Parser)]
#[command(name = "cellgate", version, about, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Data(data::Args),
    Synth(synth::Args),
    Fit(Box<fit::Args>),
    Train(Box<train::Args>),
    Inspect(inspect::Args),
    Run(run::Args),
    Merge(merge::Args),
    Calibrate(calibrate::Args),
    Eval(Box<eval::Args>),
    Model(model::Args),
    Backbone(backbone::Args),
    Bench(bench::Args),
    Camera(Box<camera::Args>),
    Doctor(doctor::Args),
    Engine(engine::Args),
    Bundle(bundle::Args),
    Update(update::Args),
    Fleet(fleet::Args),
}

impl Cli {
    /// Does what the command line asks for, and says with which status to exit.
    ///
    /// # Errors
    /// What went wrong, as a chain that names what was attempted, the file and the remedy.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if let Err(reason) = Isa::wanted() {
            anyhow::bail!("reading the environment variable CELLGATE_ISA: {reason}");
        }
        match self.verb {
            Verb::Demo(args) => demo::run(args),
            Verb::Data(args) => data::run(args),
            Verb::Synth(args) => synth::run(args),
            Verb::Fit(args) => fit::run(*args),
            Verb::Train(args) => train::run(*args),
            Verb::Inspect(args) => return inspect::run(args),
            Verb::Run(args) => return run::run(args),
            Verb::Merge(args) => merge::run(args),
            Verb::Calibrate(args) => calibrate::run(args),
            Verb::Eval(args) => eval::run(*args),
            Verb::Model(args) => model::run(args),
            Verb::Backbone(args) => backbone::run(args),
            Verb::Bench(args) => bench::run(args),
            Verb::Camera(args) => camera::run(*args),
            Verb::Doctor(args) => return doctor::run(args),
            Verb::Engine(args) => engine::run(args),
            Verb::Bundle(args) => bundle::run(args),
            Verb::Update(args) => update::run(args),
            Verb::Fleet(args) => fleet::run(args),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

/// An error and its causes in one line. Texts that put their remedy last tell the cause in the middle: it is not told again.
pub fn told(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let missing = || std::io::Error::other("no such file");
        assert_eq!(told(&anyhow::Error::new(missing()).context("reading a.toml")), "reading a.toml: no such file");
        let said = anyhow::Error::new(missing()).context("reading a.toml: no such file; make one").context("starting");
        assert_eq!(told(&said), "starting: reading a.toml: no such file; make one");
    }
}
