//! Getting an archive's bytes over an unreliable line: byte ranges, retries, bounds.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use ureq::http::StatusCode;

use crate::manifest::Manifest;

/// When to give up, and how long to wait before trying again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Attempts in a row that bring nothing new.
    pub(crate) attempts: u32,
    /// Wait before the second attempt; doubles from there, to at most 30 s.
    pub(crate) first_wait: Duration,
    /// A connection that is silent for this long is dropped.
    pub(crate) silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 6, first_wait: Duration::from_secs(1), silence: Duration::from_mins(1) }
    }
}

/// What one attempt came to.
enum Failure {
    /// Worth another try: a cut connection, a busy server.
    Passing(anyhow::Error),
    /// Not worth one: no such file, a full disk.
    Lasting(anyhow::Error),
}

/// Fills `part` from where it ends, through as many connections as it takes.
///
/// # Errors
/// No attempt out of `patience.attempts` in a row brought anything new, the server refuses (4xx), announces or sends
/// more than [`Manifest::most_bytes`], or the disk does not take it. Bytes that arrived stay in `part`.
pub(crate) fn fetch(
    url: &str,
    manifest: &Manifest,
    part: &mut File,
    patience: Patience,
    bar: &ProgressBar,
) -> Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(patience.silence))
        .timeout_recv_response(Some(patience.silence))
        .timeout_per_read(Some(patience.silence))
        .accept_encoding("identity")
        .build()
        .into();
    let mut furthest = part.metadata()?.len();
    let mut fruitless = 0;
    loop {
        let attempt = match url.strip_prefix("file://") {
            Some(path) => copy_file(Path::new(path), manifest, part, bar),
            None => fetch_once(&agent, url, manifest, part, bar),
        };
        let error = match attempt {
            Ok(()) => return Ok(()),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(error)) => error,
        };
        let len = part.metadata()?.len();
        fruitless = if len > furthest { 0 } else { fruitless + 1 };
        furthest = furthest.max(len);
        if fruitless >= patience.attempts {
            return Err(error.context(format!("cannot fetch {url} ({len} bytes so far are kept)")));
        }
        let wait = patience.first_wait.saturating_mul(1 << fruitless.min(5)).min(Duration::from_secs(30));
        bar.println(format!("{error:#}; trying again in {:.0} s", wait.as_secs_f32()));
        thread::sleep(wait);
    }
}

/// One request for what is missing. `Ok` means the server says that nothing is.
fn fetch_once(
    agent: &ureq::Agent,
    url: &str,
    manifest: &Manifest,
    part: &mut File,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let have = part.metadata().map_err(lasting)?.len();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let mut response = request.call().map_err(|error| match error {
        ureq::Error::BadUri(_) | ureq::Error::HostNotFound if have == 0 => lasting(error),
        error => passing(error),
    })?;
    let content_range =
        response.headers().get("content-range").and_then(|value| ContentRange::parse(value.to_str().ok()?));
    let from = match response.status() {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT => match content_range {
            Some(ContentRange { from: Some(from), .. }) if from <= have => from,
            _ => return start_over(part, "the server sent another range than asked for"),
        },
        StatusCode::RANGE_NOT_SATISFIABLE => match content_range {
            Some(ContentRange { total: Some(total), .. }) if total == have => return Ok(()),
            _ => return start_over(part, "the server's file is shorter than what is here"),
        },
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Err(passing(anyhow::anyhow!("{url}: the server answers {status}")));
        }
        status => {
            return Err(lasting(anyhow::anyhow!("{url}: the server answers {status}")));
        }
    };
    let total = match content_range.and_then(|range| range.total) {
        Some(total) => Some(total),
        None => response.body().content_length().map(|length| from + length),
    };
    if let Some(total) = total {
        if total > manifest.most_bytes() {
            return Err(lasting(anyhow::anyhow!(
                "{url}: the server announces {total} bytes, {} has about {}",
                manifest.folder,
                manifest.approximate_bytes
            )));
        }
        bar.set_length(total);
    }
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
    let end = append(&mut body, part, from, manifest, bar)?;
    match total {
        Some(total) if end < total => {
            Err(passing(anyhow::anyhow!("{url}: connection closed {} bytes early", total - end)))
        }
        _ => Ok(()),
    }
}

/// The `file://` mirror: the same, without a server.
fn copy_file(source: &Path, manifest: &Manifest, part: &mut File, bar: &ProgressBar) -> Result<(), Failure> {
    let open = || -> Result<File> { File::open(source).with_context(|| format!("cannot read {}", source.display())) };
    let mut file = open().map_err(Failure::Lasting)?;
    let have = part.metadata().map_err(lasting)?.len();
    file.seek(SeekFrom::Start(have)).map_err(lasting)?;
    append(&mut file, part, have, manifest, bar).map(drop)
}

/// Writes `body` into `part` from byte `from` on and returns where it ended. Bytes that arrived stay, whatever happens.
fn append(
    body: &mut impl Read,
    part: &mut File,
    from: u64,
    manifest: &Manifest,
    bar: &ProgressBar,
) -> Result<u64, Failure> {
    part.set_len(from).map_err(lasting)?;
    part.seek(SeekFrom::Start(from)).map_err(lasting)?;
    bar.set_position(from);
    bar.reset_eta();
    let mut buffer = vec![0; 1 << 18];
    let mut end = from;
    loop {
        let count = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(passing(anyhow::Error::new(error).context("connection lost")));
            }
        };
        end += count as u64;
        if end > manifest.most_bytes() {
            return Err(lasting(anyhow::anyhow!(
                "the server sends more than {} bytes, {} has about {}",
                manifest.most_bytes(),
                manifest.folder,
                manifest.approximate_bytes
            )));
        }
        part.write_all(&buffer[..count])
            .map_err(|error| lasting(anyhow::Error::new(error).context("cannot write the download")))?;
        bar.set_position(end);
    }
    Ok(end)
}

fn start_over(part: &File, why: &'static str) -> Result<(), Failure> {
    part.set_len(0).map_err(lasting)?;
    Err(passing(anyhow::anyhow!("{why}: starting over")))
}

fn passing(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Passing(error.into())
}

fn lasting(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Lasting(error.into())
}

/// `Content-Range: bytes 10-99/100`, `bytes 10-99/*`, `bytes */100`.
#[derive(Clone, Copy)]
struct ContentRange {
    from: Option<u64>,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(value: &str) -> Option<Self> {
        let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
        Some(Self {
            from: range.split_once('-').and_then(|(from, _)| from.trim().parse().ok()),
            total: total.trim().parse().ok(),
        })
    }
}
