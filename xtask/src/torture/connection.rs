//! Downloads over faulty connections.

use std::{fs, path::Path};

use anyhow::{Result, bail};

use super::{
    fault::{Fault, Survival, TortureArgs, draw},
    fixture::{DATASET, Fixture},
    program,
    scenario::Scenario,
    server::Conduct,
};

/// Downloads from faulty servers, with and without what an earlier download has left.
pub(super) fn downloads(args: &TortureArgs) -> Vec<Fault> {
    let mut faults = Vec::new();
    for conduct in Conduct::FAULTY {
        for n in 0..args.count(1, 5, 20) {
            let name = format!("{}-{n}", conduct.name());
            let (folder_name, seed) = (format!("connection-{name}"), args.seed);
            let check = move |fixture: &Fixture| {
                let folder = fixture.prepare(Scenario::Download, &folder_name)?;
                if n > 0 {
                    begin(fixture, &folder.join("downloaded"), draw(&[seed, 4, conduct as u64, n as u64], 1000))?;
                }
                let mut command = fixture.command(Scenario::Download, &folder, false);
                command.arg("--mirror").arg(fixture.mirror(conduct, n));
                let ending = program::run(command)?;
                let survival = if ending.success() {
                    fixture.compare(Scenario::Download, &folder)?;
                    Survival::Unharmed
                } else if conduct.passes() {
                    bail!("the server recovers, but: {}", ending.summary());
                } else {
                    ending.expect_error(2)?;
                    Survival::Refused
                };
                fixture.finish(Scenario::Download, &folder)?;
                fs::remove_dir_all(&folder)?;
                Ok(survival)
            };
            faults.push(Fault { name, check: Box::new(check) });
        }
    }
    faults
}

/// Leaves that share of the archive, in thousandths, as a download that was killed does.
fn begin(fixture: &Fixture, data: &Path, share: u64) -> Result<()> {
    let archive = fs::read(fixture.archive())?;
    fs::create_dir_all(data)?;
    let part = data.join(format!(".{DATASET}.tar.part"));
    Ok(fs::write(part, &archive[..archive.len() * share as usize / 1000])?)
}
