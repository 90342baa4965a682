//! What a region has: images and sizes of machines.

use coalition_cloud::one_line;

use crate::action::Action;
use crate::client::Ec2;
use crate::error::AwsError;
use crate::form::Form;
use crate::xml::Element;

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// `ami-…`.
    pub id: String,
    /// `available` when machines can be made of it.
    pub state: String,
    /// E.g. `x86_64`.
    pub architecture: String,
    /// Device its root volume is attached as.
    pub root_device: String,
    /// Smallest root volume it fits on, in GiB.
    pub root_gib: u32,
}

/// One size of machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeInfo {
    /// E.g. `m6a.large`.
    pub name: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub ram_mib: u32,
    /// Architectures.
    pub architectures: Vec<String>,
    /// Whether machines of it can run under AMD SEV-SNP. None run under Intel TDX.
    pub sev_snp: bool,
}

impl Ec2 {
    /// One image; `None` when there is none of this id.
    ///
    /// # Errors
    /// [`AwsError`].
    pub async fn image(&self, id: &str) -> Result<Option<ImageInfo>, AwsError> {
        let action = Action::DescribeImages;
        let mut form = Form::of(action);
        form.list("ImageId", [id]);
        let root = match self.query(action, form).await {
            Err(error) if error.kind() == coalition_cloud::ErrorKind::NotFound => return Ok(None),
            answered => answered?,
        };
        let images = read_images(&root).map_err(|problem| AwsError::Garbled { action, problem })?;
        Ok(images.into_iter().find(|image| image.id == id))
    }

    /// These sizes, as the region has them.
    ///
    /// # Errors
    /// [`AwsError`]; `InvalidInstanceType` when the region lacks one.
    pub async fn instance_types(&self, names: &[&str]) -> Result<Vec<TypeInfo>, AwsError> {
        let action = Action::DescribeInstanceTypes;
        let mut form = Form::of(action);
        form.list("InstanceType", names.iter().copied());
        let root = self.query(action, form).await?;
        read_types(&root).map_err(|problem| AwsError::Garbled { action, problem })
    }
}

fn number(item: &Element, path: &[&str]) -> Option<u32> {
    item.text_at(path)?.parse().ok()
}

/// Images of an answer.
pub(crate) fn read_images(root: &Element) -> Result<Vec<ImageInfo>, String> {
    root.child("imagesSet").ok_or("it has no imagesSet")?;
    let image = |item: &Element| {
        let text = |name: &str| one_line(item.text_at(&[name]).unwrap_or_default(), 100);
        let root_device = text("rootDeviceName");
        let is_root = |mapping: &&Element| mapping.text_at(&["deviceName"]) == Some(root_device.as_str());
        let root = item.items("blockDeviceMapping").find(is_root);
        let root_gib = root.and_then(|mapping| number(mapping, &["ebs", "volumeSize"])).unwrap_or_default();
        let (id, state, architecture) = (text("imageId"), text("imageState"), text("architecture"));
        ImageInfo { id, state, architecture, root_device, root_gib }
    };
    Ok(root.items("imagesSet").map(image).collect())
}

/// Sizes of an answer.
pub(crate) fn read_types(root: &Element) -> Result<Vec<TypeInfo>, String> {
    root.child("instanceTypeSet").ok_or("it has no instanceTypeSet")?;
    let size = |item: &Element| {
        let name = one_line(item.text_at(&["instanceType"]).unwrap_or_default(), 40);
        let need = |path: &[&str]| number(item, path).ok_or_else(|| format!("{name} lacks {}", path.join(".")));
        let processor = item.child("processorInfo");
        let listed = |list: &str| -> Vec<String> {
            let items = processor.into_iter().flat_map(|processor| processor.items(list));
            items.map(|item| one_line(item.text.trim(), 40)).collect()
        };
        Ok(TypeInfo {
            vcpus: need(&["vCpuInfo", "defaultVCpus"])?,
            ram_mib: need(&["memoryInfo", "sizeInMiB"])?,
            architectures: listed("supportedArchitectures"),
            sev_snp: listed("supportedFeatures").iter().any(|feature| feature == "amd-sev-snp"),
            name,
        })
    };
    root.items("instanceTypeSet").map(size).collect()
}
