//! Transfer of an archive over an unreliable connection: byte ranges, retries, bounds.

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

use super::manifest::Manifest;
use crate::failure::BadInput;

/// Number of attempts and the waits between them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryPolicy {
    /// Attempts in a row without a new byte after which the transfer fails.
    pub(crate) max_attempts: u32,
    /// Wait before the second attempt; doubles from there, to at most 30 s.
    pub(crate) first_wait: Duration,
    /// Silence after which a connection is dropped.
    pub(crate) timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: 6, first_wait: Duration::from_secs(1), timeout: Duration::from_mins(1) }
    }
}

/// Failure of one attempt.
enum Failure {
    /// Another attempt may succeed: a cut connection, a busy server.
    Transient(anyhow::Error),
    /// Another attempt would fail too: no such file, a full disk.
    Permanent(anyhow::Error),
}

/// Fills `part` from where it ends, through as many connections as it takes.
///
/// # Errors
/// No attempt out of `retry.max_attempts` in a row brought anything new, the server refuses (4xx), announces or sends
/// more than [`Manifest::max_bytes`], or the disk does not take it. Bytes that arrived stay in `part`.
pub(crate) fn fetch(
    url: &str,
    manifest: &Manifest,
    part: &mut File,
    retry: RetryPolicy,
    bar: &ProgressBar,
) -> Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(retry.timeout))
        .timeout_recv_response(Some(retry.timeout))
        .timeout_per_read(Some(retry.timeout))
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
            Err(Failure::Permanent(error)) => return Err(error),
            Err(Failure::Transient(error)) => error,
        };
        let len = part.metadata()?.len();
        fruitless = if len > furthest { 0 } else { fruitless + 1 };
        furthest = furthest.max(len);
        if fruitless >= retry.max_attempts {
            return Err(error.context(format!("cannot fetch {url} ({len} bytes so far are kept)")));
        }
        let wait = retry.first_wait.saturating_mul(1 << fruitless.min(5)).min(Duration::from_secs(30));
        bar.println(format!("{error:#}; trying again in {:.0} s", wait.as_secs_f32()));
        thread::sleep(wait);
    }
}

/// Requests the missing bytes once. `Ok` means that the server sent them all.
fn fetch_once(
    agent: &ureq::Agent,
    url: &str,
    manifest: &Manifest,
    part: &mut File,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let have = part.metadata().map_err(permanent)?.len();
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("Range", format!("bytes={have}-"));
    }
    let mut response = request.call().map_err(|error| match error {
        ureq::Error::BadUri(_) | ureq::Error::HostNotFound if have == 0 => permanent(error),
        error => transient(error),
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
            return Err(transient(BadInput::new(format!("{url}: the server answers {status}"))));
        }
        status => {
            return Err(permanent(BadInput::new(format!("{url}: the server answers {status}"))));
        }
    };
    let total = match content_range.and_then(|range| range.total) {
        Some(total) => Some(total),
        None => response.body().content_length().map(|length| from + length),
    };
    if let Some(total) = total {
        if total > manifest.max_bytes() {
            return Err(permanent(BadInput::new(format!(
                "{url}: the server announces {total} bytes, {} has about {}",
                manifest.folder, manifest.approximate_bytes
            ))));
        }
        bar.set_length(total);
    }
    let mut body = response.body_mut().with_config().limit(u64::MAX).reader();
    let end = append(&mut body, part, from, manifest, bar)?;
    match total {
        Some(total) if end < total => {
            Err(transient(BadInput::new(format!("{url}: connection closed {} bytes early", total - end))))
        }
        _ => Ok(()),
    }
}

/// Copies the missing bytes from a `file://` mirror.
fn copy_file(source: &Path, manifest: &Manifest, part: &mut File, bar: &ProgressBar) -> Result<(), Failure> {
    let file = adw_files::open_regular(source).with_context(|| format!("cannot read {}", source.display()));
    let mut file = file.map_err(Failure::Permanent)?;
    let have = part.metadata().map_err(permanent)?.len();
    file.seek(SeekFrom::Start(have)).map_err(permanent)?;
    append(&mut file, part, have, manifest, bar).map(drop)
}

/// Writes `body` into `part` from byte `from` on and returns its end. Bytes that arrived stay in `part` after a failure.
fn append(
    body: &mut impl Read,
    part: &mut File,
    from: u64,
    manifest: &Manifest,
    bar: &ProgressBar,
) -> Result<u64, Failure> {
    part.set_len(from).map_err(permanent)?;
    part.seek(SeekFrom::Start(from)).map_err(permanent)?;
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
                return Err(transient(anyhow::Error::new(error).context("connection lost")));
            }
        };
        end += count as u64;
        if end > manifest.max_bytes() {
            return Err(permanent(BadInput::new(format!(
                "the server sends more than {} bytes, {} has about {}",
                manifest.max_bytes(),
                manifest.folder,
                manifest.approximate_bytes
            ))));
        }
        part.write_all(&buffer[..count])
            .map_err(|error| permanent(anyhow::Error::new(error).context("cannot write the download")))?;
        bar.set_position(end);
    }
    Ok(end)
}

fn start_over(part: &File, why: &'static str) -> Result<(), Failure> {
    part.set_len(0).map_err(permanent)?;
    Err(transient(BadInput::new(format!("{why}: starting over"))))
}

fn transient(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Transient(error.into())
}

fn permanent(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Permanent(error.into())
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
