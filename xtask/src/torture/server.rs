//! Web server of a dataset's archive on 127.0.0.1, whose conduct is part of the address.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result};

/// Conduct of the server towards the requests of one address.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Conduct {
    Sound,
    /// The first connection is closed after half of the body.
    Cut,
    /// The first connection is closed without an answer.
    Closed,
    /// The first request is answered 503.
    Busy,
    /// Every answer is 404.
    Missing,
    /// The announced length is 1000 bytes too large.
    Longer,
    /// The announced length is 1000 bytes too small.
    Shorter,
    /// The announced length is that of no disk.
    Absurd,
    /// A byte is another one.
    Corrupt,
    /// The archive ends early, as its server believes.
    Truncated,
}

impl Conduct {
    pub(super) const FAULTY: [Self; 9] = [
        Self::Cut,
        Self::Closed,
        Self::Busy,
        Self::Missing,
        Self::Longer,
        Self::Shorter,
        Self::Absurd,
        Self::Corrupt,
        Self::Truncated,
    ];

    pub(super) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn of_path(path: &str) -> Self {
        let name = path.split('/').nth(1).unwrap_or_default();
        Self::FAULTY.into_iter().find(|conduct| conduct.name() == name).unwrap_or(Self::Sound)
    }

    /// Returns true if another attempt brings the whole archive.
    pub(super) fn passes(self) -> bool {
        matches!(self, Self::Sound | Self::Cut | Self::Closed | Self::Busy | Self::Longer)
    }
}

/// Serves an archive until the process ends, and returns the server's address.
pub(super) fn start(archive: Vec<u8>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("127.0.0.1")?;
    let url = format!("http://{}", listener.local_addr()?);
    let archive: &'static [u8] = archive.leak();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that was killed hangs up early.
            thread::spawn(move || answer(stream, archive).ok());
        }
    });
    Ok(url)
}

fn answer(mut stream: TcpStream, archive: &[u8]) -> Result<()> {
    static ASKED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let lines = BufReader::new(stream.try_clone()?).lines().map_while(Result::ok);
    let lines: Vec<_> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let path = lines.first().and_then(|line| line.split_whitespace().nth(1)).context("no request")?.to_owned();
    let from = lines.iter().find_map(|line| line.strip_prefix("range: bytes=")?.trim_end_matches('-').parse().ok());
    let conduct = Conduct::of_path(&path);
    let is_first = ASKED.lock().is_ok_and(|mut asked| asked.insert(path));
    let mut content = archive.to_vec();
    let middle = content.len() / 2;
    match conduct {
        Conduct::Closed if is_first => return Ok(()),
        Conduct::Busy if is_first => return refuse(&mut stream, "503 Service Unavailable"),
        Conduct::Missing => return refuse(&mut stream, "404 Not Found"),
        Conduct::Corrupt => content[middle] ^= 1,
        Conduct::Truncated => content.truncate(middle),
        _ => {}
    }
    let total = content.len();
    match from {
        Some(from) if from >= total => {
            let head = format!("Content-Range: bytes */{total}\r\nContent-Length: 0");
            write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\n{head}\r\nConnection: close\r\n\r\n")?;
            return Ok(());
        }
        Some(from) => {
            let range = format!("{from}-{}/{total}", total - 1);
            write!(stream, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}\r\n")?;
        }
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
    }
    let body = &content[from.unwrap_or(0)..];
    let length = match conduct {
        Conduct::Longer => body.len() + 1000,
        Conduct::Shorter => body.len().saturating_sub(1000),
        Conduct::Absurd => usize::MAX >> 1,
        _ => body.len(),
    };
    write!(stream, "Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    let sent = if conduct == Conduct::Cut && is_first { body.len() / 2 } else { body.len() };
    stream.write_all(&body[..sent])?;
    Ok(())
}

fn refuse(stream: &mut TcpStream, status: &str) -> Result<()> {
    Ok(write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?)
}
