//! Reports of runs: content, independence of the network, and their life in a browser where Chromium is installed.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use cli_support::{Adw, TINY, phantom, tiny_settings};
use serde_json::Value;

/// Script before all others: collects errors, and when the page has loaded moves every view by a key.
const PROBE: &str = r#"<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
addEventListener("load", async () => {
  const until = async condition => { for (let i = 0; i < 1000 && !condition(); i++) await new Promise(done => setTimeout(done, 20)); };
  const moved = [];
  for (const figure of document.querySelectorAll("[data-volume]")) {
    figure.scrollIntoView();
    await until(() => figure.classList.contains("live"));
    for (const canvas of figure.querySelectorAll("canvas")) {
      const output = canvas.parentElement.querySelector("output"), before = output.textContent;
      const ink = () => { const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data; return d.some((v, i) => i % 4 < 3 && v > 60); };
      canvas.focus();
      for (const key of ["Home", "ArrowUp", "ArrowUp"]) canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      moved.push(document.activeElement === canvas && output.textContent.startsWith("3 of") && before.includes(" of ") && ink());
    }
  }
  const visible = element => element.getBoundingClientRect().height > 40 && element.innerText.trim().length > 80;
  const result = {
    errors, moved,
    empty: [...document.querySelectorAll("section")].filter(section => !visible(section)).map(section => section.id),
    wide: document.documentElement.scrollWidth > innerWidth,
    unnamed: [...document.querySelectorAll("svg[role=img], canvas, input")].filter(e => !e.getAttribute("aria-label")).length,
    broken: [...document.querySelectorAll("a[href^='#']")].filter(a => !document.querySelector(a.getAttribute("href"))).length,
  };
  fetch("/result", { method: "POST", body: JSON.stringify(result) });
});
</script>"#;

/// Opens the page with the probe, `width` pixels wide, and returns what that found; none without Chromium. The page comes
/// from a server of the test's own, to which the probe sends its result.
fn probe(page: &Path, width: usize, scratch: &Path) -> Option<Value> {
    let probed = fs::read_to_string(page).unwrap().replacen("<head>", &format!("<head>{PROBE}"), 1);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let log = scratch.join("chromium.log");
    let browser = Command::new("chromium")
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--no-first-run"])
        .arg(format!("--window-size={width},900"))
        .arg(format!("--user-data-dir={}", scratch.join("profile").display()))
        .arg(format!("http://{}/", server.local_addr().unwrap()))
        .stderr(File::create(&log).unwrap())
        .spawn();
    let mut browser = match browser {
        Ok(browser) => browser,
        Err(error) => {
            eprintln!("skipped: chromium does not start ({error}); install it to open reports in a browser");
            return None;
        }
    };
    let (send, result) = mpsc::channel();
    thread::spawn(move || {
        // One request per connection. The test has ended if nobody takes the result.
        for mut connection in server.incoming().flatten() {
            let request = read_request(&mut connection);
            let body = if request.starts_with("GET / ") { probed.as_str() } else { "" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let _ = connection.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice());
            if let Some((_, result)) = request.split_once("\r\n\r\n").filter(|_| request.starts_with("POST")) {
                let _ = send.send(result.to_owned());
            }
        }
    });
    let result = result.recv_timeout(Duration::from_mins(2));
    let _ = browser.kill();
    browser.wait().unwrap();
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("CONSOLE"), "{log}");
    Some(serde_json::from_str(&result.unwrap_or_else(|_| panic!("the probe sent no result: {log}"))).unwrap())
}

/// Head and body of a request.
fn read_request(connection: &mut TcpStream) -> String {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let read = connection.read(&mut buffer).unwrap_or(0);
        request.extend(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let length = text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let is_whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.len() >= length.unwrap_or(0));
        if read == 0 || is_whole {
            return text;
        }
    }
}

#[test]
fn a_run_ends_with_a_report_that_works_offline_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 10);
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    let report = run.join("report.html");
    let after_search = fs::read_to_string(&report).unwrap();
    assert!(after_search.contains("id=\"search-0\"") && !after_search.contains("id=\"training-0\""));

    let plain = ["retrain", "--uniform-width", "4", "--uniform-depth", "1", "--name", "<plain>"];
    Adw::new(["retrain"]).path("--run", &run).succeed();
    Adw::new(plain).path("--run", &run).succeed();
    Adw::new(["retrain", "--fold", "all"]).path("--run", &run).succeed();
    let html = fs::read_to_string(&report).unwrap();
    for part in ["overview", "search-0", "training-0", "training-1", "training-2", "data", "repeat"] {
        assert!(html.contains(&format!("<section id=\"{part}\"")), "{part}");
    }
    for text in [
        "encoder 0 depth",
        "Choices of the found network",
        "Dice per case",
        "organ 1",
        "better in",
        "; first weights those of its search and random",
        "class=\"slice\"",
        "found architecture, all cases",
        "Trained on every case",
        "--fold all",
        "Class volumes",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert!(html.contains("&lt;plain&gt;") && !html.contains("<plain>"), "names are escaped");
    // Nothing is loaded from elsewhere: the only addresses are names of formats.
    let addresses = html.matches("http").count();
    assert_eq!(addresses, html.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(html.len() < 5_000_000, "{}", html.len());

    // The same run gives the same report, wherever it is written.
    let other = dir.path().join("other.html");
    Adw::new(["report"]).arg(run.display()).path("--output", &other).succeed();
    assert!(fs::read_to_string(&other).unwrap() == html);

    for width in [1280, 500] {
        let Some(found) = probe(&report, width, dir.path()) else { return };
        assert_eq!(found["errors"], Value::Array(vec![]), "{found}");
        assert_eq!(found["empty"], Value::Array(vec![]), "{found}");
        let moved = found["moved"].as_array().unwrap();
        // Two validation cases of each training, three views of each.
        assert!(moved.len() == 12 && moved.iter().all(|moved| moved == true), "{found}");
        assert!(found["wide"] == false && found["unnamed"] == 0 && found["broken"] == 0, "{found}");
    }
}

#[test]
fn sweeps_and_cross_validations_have_reports_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let sweep = dir.path().join("study.toml");
    let settings = tiny_settings();
    let text = format!(
        "datasets = [{:?}]\nfolds = [0, 1]\nset = {settings:?}\n[[arms]]\nname = \"narrow\"\nuniform_width = 4\n[[arms]]\n\
         name = \"wide\"\nuniform_width = 6\n",
        data.display().to_string()
    );
    fs::write(&sweep, text).unwrap();
    Adw::new(["sweep", "run"]).arg(sweep.display()).succeed();
    let of_sweep = dir.path().join("study/report.html");
    let html = fs::read_to_string(&of_sweep).unwrap();
    for part in ["narrow - wide", "Dice over cost", "Worst cases", "adw sweep run study.toml", "of searches and"] {
        assert!(html.contains(part), "{part} is not in {html}");
    }
    for name in ["phantom-dice.svg", "phantom-cost.svg"] {
        let svg = fs::read_to_string(dir.path().join("study/plots").join(name)).unwrap();
        assert!(
            svg.starts_with("<svg xmlns=") && svg.contains(">narrow</text>") && svg.contains(">wide</text>"),
            "{svg}"
        );
    }
    // By its file or its folder, the same bytes.
    for sweep in [&sweep, &dir.path().join("study")] {
        let other = dir.path().join("other.html");
        Adw::new(["report"]).arg(sweep.display()).path("--output", &other).succeed();
        assert!(fs::read_to_string(&other).unwrap() == html);
    }

    let run = dir.path().join("run");
    let crossval = Adw::new(["crossval", "--uniform-width=4"]).path("--data", &data).path("--run", &run);
    crossval.args(TINY).args(["--set=retrain.epochs=1", "--name=\"><i>plain"]).succeed();
    let of_crossval = run.join("report.html");
    let html = fs::read_to_string(&of_crossval).unwrap();
    let section =
        html.split("<section id=\"crossval-0\"").nth(1).expect("a section").split("</section>").next().unwrap();
    for part in [
        "95 % interval",
        "over 5 cases",
        "Searches</dt><dd>none",
        "trainings ",
        "worst first",
        "<th scope=\"row\">4</th>",
    ] {
        assert!(section.contains(part), "{part} is not in {section}");
    }
    assert!(!html.contains("\"><i>plain"), "a name is no element");
    assert!(html.contains("adw crossval --data ") && html.contains("--architecture "), "the command that repeats it");

    for (page, width) in [(&of_sweep, 1280), (&of_sweep, 500), (&of_crossval, 1280), (&of_crossval, 500)] {
        let Some(found) = probe(page, width, dir.path()) else { return };
        assert!(found["errors"] == Value::Array(vec![]) && found["empty"] == Value::Array(vec![]), "{found}");
        assert!(found["wide"] == false && found["unnamed"] == 0 && found["broken"] == 0, "{found}");
    }
}

#[test]
fn the_configuration_of_a_run_repeats_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let search = |run: &Path| Adw::new(["search"]).path("--data", &data).path("--run", run);
    let (first, again) = (dir.path().join("first"), dir.path().join("again"));
    search(&first).args(TINY).args(["--seed", "7"]).succeed();
    search(&again).path("--preset", &first.join("config.toml")).succeed();
    let found = |run: &Path| fs::read(run.join("search/fold_0/architecture.json")).unwrap();
    assert!(found(&first) == found(&again));
}

#[test]
fn unfinished_runs_have_a_report_and_other_folders_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).succeed();
    // As a search leaves it that was killed in its second epoch, while it wrote the third row.
    let folder = run.join("search/fold_0");
    fs::remove_file(folder.join("architecture.json")).unwrap();
    let history = fs::read_to_string(folder.join("history.jsonl")).unwrap();
    let rows: Vec<&str> = history.lines().collect();
    fs::write(folder.join("history.jsonl"), format!("{}\n{}\n{}", rows[0], rows[1], &rows[2][..40])).unwrap();
    // The dataset has moved since.
    fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    Adw::new(["report"]).arg(run.display()).succeed();
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains("found so far") && html.contains("no longer where the run found it"));

    fs::write(folder.join("history.jsonl"), format!("{}\n{{}}\n", rows[0])).unwrap();
    Adw::new(["report"]).arg(run.display()).run().assert_bad_input(&["history.jsonl", "line 2"]);
    Adw::new(["report"]).arg(dir.path().display()).run().assert_bad_input(&["is not a run"]);
}
