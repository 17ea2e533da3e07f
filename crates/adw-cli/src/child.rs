//! This program as a child of itself: command lines of its commands.

use std::{env, ffi::OsString, path::Path, process::Command};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::args::{ArchitectureArgs, ConfigArgs, DeviceArgs, MemoryArgs, ProcessArgs};

/// Arguments of a command line, built option by option.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments(Vec<OsString>);

impl Arguments {
    /// Arguments that begin with a command.
    pub(crate) fn of(command: &str) -> Self {
        Self(vec![command.into()])
    }

    /// Adds an option without a value.
    pub(crate) fn flag(mut self, option: &str) -> Self {
        self.0.push(option.into());
        self
    }

    /// Adds an option if it has a value; `--option=value`, so that values may begin with a dash.
    pub(crate) fn option(mut self, option: &str, value: Option<impl ToString>) -> Self {
        self.0.extend(value.map(|value| format!("{option}={}", value.to_string()).into()));
        self
    }

    /// Adds an option with a path, if there is one.
    pub(crate) fn path(mut self, option: &str, path: Option<&Path>) -> Self {
        self.0.extend(path.map(|path| {
            let mut argument = OsString::from(format!("{option}="));
            argument.push(path);
            argument
        }));
        self
    }

    /// Adds options with their values.
    pub(crate) fn option_list(self, options: Vec<(&str, String)>) -> Self {
        options.into_iter().fold(self, |arguments, (option, value)| arguments.option(option, Some(value)))
    }

    /// Adds an argument that is no option.
    pub(crate) fn argument(mut self, argument: &Path) -> Self {
        self.0.push(argument.into());
        self
    }

    /// Adds options for a preset, a seed and changes of values.
    pub(crate) fn config(self, args: &ConfigArgs) -> Self {
        let arguments = self.option("--preset", args.preset.as_ref()).option("--seed", args.seed);
        args.set.iter().fold(arguments, |arguments, assignment| arguments.option("--set", Some(assignment)))
    }

    /// Adds options for an architecture.
    pub(crate) fn architecture(self, args: &ArchitectureArgs) -> Self {
        let plain = args.plain.and_then(|plain| Some(plain.to_possible_value()?.get_name().to_owned()));
        let uniform = args.uniform_width.is_some();
        self.path("--architecture", args.architecture.as_deref())
            .option("--uniform-width", args.uniform_width)
            .option("--uniform-depth", uniform.then_some(args.uniform_depth))
            .option("--uniform-max-features", uniform.then_some(args.uniform_max_features))
            .option("--plain", plain)
            .option("--random", args.random)
            .option("--cost", args.cost)
    }

    /// Adds options for the device, the memory and the process.
    pub(crate) fn resources(self, device: &DeviceArgs, memory: MemoryArgs, process: &ProcessArgs) -> Self {
        let convolutions = device.convolutions.to_possible_value().map(|value| value.get_name().to_owned());
        let arguments = self
            .option("--device", Some(&device.device))
            .option("--convolutions", convolutions)
            .option("--memory", memory.memory)
            .option("--threads", process.threads);
        if process.json { arguments.flag("--json") } else { arguments }
    }

    /// Command line as the program's parser takes it, with its name in front.
    pub(crate) fn line(&self) -> Vec<OsString> {
        [vec!["adw".into()], self.0.clone()].concat()
    }

    /// Process of this program with these arguments; its messages show the name that this one was started by.
    ///
    /// # Errors
    /// The system does not know this program's file.
    pub(crate) fn command(&self) -> Result<Command> {
        let mut command = Command::new(env::current_exe().context("cannot find this program's own file")?);
        #[cfg(unix)]
        if let Some(name) = env::args_os().next() {
            std::os::unix::process::CommandExt::arg0(&mut command, name);
        }
        command.args(&self.0);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn options_are_read_as_they_were_given() {
        let line = [
            "adw",
            "retrain",
            "--run=a b",
            "--fold=2",
            "--uniform-width=4",
            "--uniform-depth=1",
            "--seed=7",
            "--set=search.lr.peak=-1",
            "--device=cpu",
            "--memory=0.5",
            "--threads=2",
            "--preset=paper",
        ];
        let parse = |line: Vec<OsString>| match Cli::try_parse_from(line).unwrap().command {
            Command::Retrain(args) => args,
            other => panic!("{other:?}"),
        };
        let args = parse(line.iter().map(OsString::from).collect());
        let built = Arguments::of("retrain")
            .path("--run", args.run.as_deref())
            .option("--fold", args.fold)
            .config(&args.config)
            .architecture(&args.architecture)
            .resources(&args.device, args.memory, &args.process);
        assert_eq!(format!("{:?}", parse(built.line())), format!("{args:?}"));
    }
}
