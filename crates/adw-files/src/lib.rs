#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod file_kind;
mod lock;
mod new_file;
mod new_folder;
mod temporary;

pub use file_kind::{check_replaceable, open_own, open_regular, read_small, read_text};
pub use lock::{Lock, lock_with_timeout};
pub use new_file::{NewFile, write_atomic, write_bytes};
pub use new_folder::NewFolder;
pub use temporary::{OwnRemoved, create_folders, remove_own, remove_stale, sync_parent};
