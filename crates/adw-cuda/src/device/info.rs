/// Name and memory of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name that the driver gives the device.
    pub name: String,
    /// Bytes of memory that are not in use.
    pub free_bytes: usize,
    /// Bytes of memory in all.
    pub total_bytes: usize,
}
