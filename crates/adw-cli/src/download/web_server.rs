//! Web server of one file on 127.0.0.1, with the faults of real ones, for the download's tests.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Faults of the server's answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// Close the connection after this many bytes of a body.
    pub(crate) cut_after: Option<usize>,
    /// Answer every range request with the whole file.
    pub(crate) ignore_ranges: bool,
    /// Add this to every Content-Length.
    pub(crate) length_lie: i64,
    /// Number of requests, from the first on, that are answered 503.
    pub(crate) busy_requests: usize,
    /// Answer this status to everything.
    pub(crate) status: Option<&'static str>,
    /// Send no length: the body ends with the connection.
    pub(crate) no_length: bool,
}

/// Server of one content under any path, until the process ends.
pub(crate) struct WebServer {
    pub(crate) url: String,
    /// First byte of each request's range, in order.
    pub(crate) asked_from: Arc<Mutex<Vec<usize>>>,
}

impl WebServer {
    pub(crate) fn start(content: Vec<u8>, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked_from = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked_from);
        let requests = AtomicUsize::new(0);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let number = requests.fetch_add(1, Ordering::Relaxed);
                // A client that hangs up early is part of the tests.
                let _ = answer(stream, &content, faults, number, &log);
            }
        });
        Self { url, asked_from }
    }
}

fn answer(
    mut stream: TcpStream,
    content: &[u8],
    faults: Faults,
    number: usize,
    log: &Mutex<Vec<usize>>,
) -> std::io::Result<()> {
    let mut from = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(range) = line.strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse::<usize>().ok();
        }
    }
    log.lock().unwrap().push(from.unwrap_or(0));
    if let Some(status) = faults.status {
        return write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if number < faults.busy_requests {
        return write!(stream, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let from = from.filter(|_| !faults.ignore_ranges);
    if from.is_some_and(|from| from >= content.len()) {
        return write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            content.len()
        );
    }
    let body = &content[from.unwrap_or(0)..];
    match from {
        None => write!(stream, "HTTP/1.1 200 OK\r\n")?,
        Some(from) => write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
            content.len() - 1,
            content.len()
        )?,
    }
    if !faults.no_length {
        write!(stream, "Content-Length: {}\r\n", body.len() as i64 + faults.length_lie)?;
    }
    write!(stream, "Connection: close\r\n\r\n")?;
    stream.write_all(&body[..faults.cut_after.unwrap_or(body.len()).min(body.len())])?;
    stream.flush()
}
