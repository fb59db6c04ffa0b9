// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "TurboVAEDBench",
    platforms: [.iOS(.v17), .macOS(.v14)],
    products: [.library(name: "TurboVAEDBench", targets: ["TurboVAEDBench"])],
    targets: [
        // Copied, not compiled: the package is compiled on the device, which is part of what is measured.
        // Listed one by one: an iOS bundle with a folder named Resources cannot be signed.
        .target(
            name: "TurboVAEDBench",
            resources: [
                .copy("Resources/student.mlpackage"),
                .copy("Resources/latents.bin"),
                .copy("Resources/expected.bin"),
                .copy("Resources/case.json"),
            ]
        ),
        .testTarget(name: "TurboVAEDBenchTests", dependencies: ["TurboVAEDBench"]),
    ]
)
