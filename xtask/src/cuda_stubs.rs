//! Stand-ins for the functions of NVIDIA's libraries, so that a program links without the libraries.

use std::{collections::BTreeMap, fmt::Write as _};

/// C source with a weak definition of every function that cudarc's bindings declare.
pub(crate) fn stub_source(bindings: &str, failure: u32) -> String {
    let mut text = format!(
        "#include <stdio.h>\n\
         static int missing(const char *name) {{\n    \
             fprintf(stderr, \"emulated CUDA: %s is not emulated\\n\", name);\n    \
             return {failure};\n\
         }}\n"
    );
    for (name, gives_text) in declared(bindings) {
        let weak = "__attribute__((weak))";
        let line = if gives_text {
            format!("{weak} const char *{name}(void) {{ return \"not emulated\"; }}")
        } else {
            format!("{weak} int {name}(void) {{ return missing(\"{name}\"); }}")
        };
        writeln!(text, "{line}").expect("writing to a string");
    }
    text
}

/// Functions in cudarc's bindings, some of which are there for several versions of CUDA; true for those that return text.
fn declared(bindings: &str) -> BTreeMap<&str, bool> {
    let declarations =
        bindings.lines().filter_map(|l| l.trim().strip_prefix("pub unsafe fn ")).filter_map(|l| l.split_once('('));
    declarations
        .filter(|(name, _)| name.starts_with("cu") || name.starts_with("nvrtc"))
        // cudarc's own, not the library's.
        .filter(|(name, _)| *name != "culib")
        .map(|(name, rest)| (name, rest.contains("-> *const")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_for_every_function_once() {
        let bindings = "#[cfg(feature = \"cuda-12000\")]\n\
                        pub unsafe fn cuThing_v2(a: u32) -> CUresult {\n\
                        pub unsafe fn cuThing_v2(a: u64) -> CUresult {\n    \
                        pub unsafe fn nvrtcGetErrorString(r: nvrtcResult) -> *const c_char {\n\
                        pub unsafe fn culib() -> &'static Lib {\n\
                        pub unsafe fn from_library(l: L) -> Self {\n";
        let source = stub_source(bindings, 801);
        assert!(source.contains("return 801;"));
        assert_eq!(source.matches("int cuThing_v2(void)").count(), 1, "{source}");
        assert!(source.contains("const char *nvrtcGetErrorString(void)"));
        assert!(!source.contains("culib") && !source.contains("from_library"));
    }
}
