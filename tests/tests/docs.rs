//! Pages of the book and links between all Markdown files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().canonicalize().unwrap()
}

/// Markdown files in `folder`, sorted.
fn markdown(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    files.sort();
    files
}

/// Markdown files of the book.
fn pages(docs: &Path) -> Vec<PathBuf> {
    [markdown(docs), markdown(&docs.join("study"))].concat()
}

/// Text without fenced blocks and code spans, in which brackets are no links and `#` is no heading.
fn prose(text: &str) -> String {
    let blocks = text.split("```");
    let outside: String = blocks.step_by(2).collect();
    outside.split('`').step_by(2).collect()
}

/// Targets of the links and pictures of a page.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// Anchors of the headings of a page, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let outside: String = text.split("```").step_by(2).collect();
    let headings = outside.lines().filter(|line| line.starts_with('#'));
    let letters = |c: char| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c.to_ascii_lowercase()),
        _ => None,
    };
    headings.map(|line| line.trim_start_matches('#').trim().chars().filter_map(letters).collect()).collect()
}

#[test]
fn links_of_all_pages_lead_somewhere() {
    let root = repository();
    let docs = root.join("docs");
    let others = ["benchmarks", "python/msd-data"].map(|folder| markdown(&root.join(folder))).concat();
    let mut files = [markdown(&root), pages(&docs), others].concat();
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        files.extend(markdown(&entry.unwrap().path()));
    }
    let (mut links, mut broken) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for target in targets(&text) {
            if target.starts_with("http") {
                continue;
            }
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let to = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            let (to, exists) = to.canonicalize().map_or((to, false), |to| (to, true));
            let is_page = to.extension().is_some_and(|end| end == "md");
            let has_anchor = || anchors(&fs::read_to_string(&to).unwrap()).contains(anchor);
            // mdBook makes pages of all links to Markdown files, also of those that are not in the book.
            let leaves_book = file.starts_with(&docs) && is_page && !to.starts_with(&docs);
            if !exists || leaves_book || !(anchor.is_empty() || is_page && has_anchor()) {
                broken.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(links > 50 && broken.is_empty(), "{links} links: {broken:#?}");
}

#[test]
fn every_page_is_in_the_summary() {
    let docs = repository().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = targets(&summary).iter().map(|page| docs.join(page)).collect();
    let pages: BTreeSet<_> = pages(&docs).into_iter().filter(|page| !page.ends_with("SUMMARY.md")).collect();
    assert_eq!(listed, pages);
}

#[test]
fn links_and_anchors_are_found_in_prose_alone() {
    let text = "# A b-c: `d`!\n```sh\n# no [x](y)\n```\n[a](b.md#c) and `[no](link)` ![p](q.svg)";
    assert_eq!(targets(text), ["b.md#c", "q.svg"]);
    assert_eq!(anchors(text), BTreeSet::from(["a-b-c-d".to_owned()]));
}
