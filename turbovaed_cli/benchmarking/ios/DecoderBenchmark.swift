import CoreML
import Foundation

/// The facts that `turbovaed bench --ios-project` wrote next to the model: its shapes, and the quality it has to reach.
public struct BenchmarkCase: Decodable, Sendable {
    public let model: String
    public let params: Int
    public let precision: String
    public let layout: String
    public let sizeMb: Double
    public let latents: [Int]  // (1, C, t, h, w)
    public let video: [Int]  // (1, 3, T, H, W), in [-1, 1]
    public let leastPsnrDb: Double

    /// Read the case of this package.
    public static func load() throws -> BenchmarkCase {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(BenchmarkCase.self, from: Data(contentsOf: resource("case.json")))
    }
}

/// One row of `turbovaed bench --json`, measured on this device.
public struct BenchmarkRow: Encodable, Sendable {
    public let target = "coreml"
    public let network = "student"
    public let runtime: String
    public let unit: String
    public let precision: String
    public let layout: String
    public let measured = true
    public let status = "measured"
    public let frames: Int
    public let size: [Int]
    public let sizeMb: Double
    public let loadS: Double
    public let firstMs: Double
    public let p50Ms: Double
    public let p90Ms: Double
    public let fps: Double
    public let realtime: Double
    public let peakMb: Double
    public let psnrDb: Double
    public let samplesMs: [Double]
    public let remarks: [String]
}

/// The document that `turbovaed bench --compare FILE --report PAGE` reads.
public struct BenchmarkDocument: Encodable, Sendable {
    public let schemaVersion = 1
    public let model: String
    public let params: Int
    public let machine: String
    public let latents = "the latents of the Swift package"
    public let rows: [BenchmarkRow]

    public init(of benchmarkCase: BenchmarkCase, rows: [BenchmarkRow]) {
        model = benchmarkCase.model
        params = benchmarkCase.params
        machine = DecoderBenchmark.machine
        self.rows = rows
    }

    /// Return the document as JSON text.
    public func json() throws -> String {
        let encoder = JSONEncoder()
        encoder.keyEncodingStrategy = .convertToSnakeCase
        encoder.outputFormatting = [.sortedKeys]
        return String(decoding: try encoder.encode(self), as: UTF8.self)
    }
}

public enum BenchmarkError: Error {
    case noVideo
    case notFloat32
    case missing(String)
}

public enum DecoderBenchmark {
    /// Every choice of compute units, in the words of `turbovaed bench`.
    public static let units: [(String, MLComputeUnits)] = [
        ("all units", .all),
        ("CPU and Neural Engine", .cpuAndNeuralEngine),
        ("CPU and GPU", .cpuAndGPU),
        ("CPU", .cpuOnly),
    ]

    /// Compile and load the model, decode the package's latents `warmup` + `repeats` times, compare with the expected video.
    public static func run(_ name: String, _ computeUnits: MLComputeUnits, warmup: Int = 2, repeats: Int = 20) async throws -> BenchmarkRow {
        let wanted = try BenchmarkCase.load()
        let latents = try array(from: resource("latents.bin"), shape: wanted.latents)
        let inputs = try MLDictionaryFeatureProvider(dictionary: ["latents": latents])
        let before = footprint().now
        let thermal = ProcessInfo.processInfo.thermalState

        let compiled = try await MLModel.compileModel(at: resource("student.mlpackage"))
        defer { try? FileManager.default.removeItem(at: compiled) }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        let loadBegan = DispatchTime.now()
        let model = try MLModel(contentsOf: compiled, configuration: configuration)
        let loadS = milliseconds(since: loadBegan) / 1000

        let calls = try timed(model, inputs, warmup + repeats)
        let samples = Array(calls.milliseconds.dropFirst(warmup))
        let p50 = percentile(samples, 50)
        let fps = Double(wanted.video[2]) / p50 * 1000
        return BenchmarkRow(
            runtime: "Core ML, \(ProcessInfo.processInfo.operatingSystemVersionString)",
            unit: "\(machine): \(name)",
            precision: wanted.precision,
            layout: wanted.layout,
            frames: wanted.video[2],
            size: [wanted.video[3], wanted.video[4]],
            sizeMb: wanted.sizeMb,
            loadS: loadS,
            firstMs: calls.milliseconds[0],
            p50Ms: p50,
            p90Ms: percentile(samples, 90),
            fps: fps,
            realtime: fps / 24,
            peakMb: max(0, footprint().peak - before),
            psnrDb: try psnr(of: calls.video, against: resource("expected.bin")),
            samplesMs: samples,
            remarks: ["peak memory is the highest of this process so far, the Neural Engine's own not in it", "thermal state before \(thermal.rawValue), after \(ProcessInfo.processInfo.thermalState.rawValue) (0 is nominal)"]
        )
    }

    /// The device's model identifier, such as iPhone17,1.
    public static var machine: String {
        var about = utsname()
        uname(&about)
        return withUnsafeBytes(of: &about.machine) { bytes in
            String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        }
    }
}

/// Decode this many times; return each call's milliseconds and the last video. Not async, as the timed call is not.
func timed(_ model: MLModel, _ inputs: MLFeatureProvider, _ count: Int) throws -> (milliseconds: [Double], video: MLMultiArray) {
    var taken: [Double] = []
    var video: MLMultiArray?
    for _ in 0..<count {
        let began = DispatchTime.now()
        let outputs = try model.prediction(from: inputs)
        taken.append(milliseconds(since: began))
        video = outputs.featureValue(for: "video")?.multiArrayValue
    }
    guard let decoded = video else { throw BenchmarkError.noVideo }
    guard decoded.dataType == .float32 else { throw BenchmarkError.notFloat32 }
    return (taken, decoded)
}

func resource(_ name: String) throws -> URL {
    guard let url = Bundle.module.url(forResource: name, withExtension: nil) else {
        throw BenchmarkError.missing(name)
    }
    return url
}

/// Read little-endian 32-bit floats from a file.
func floats(from url: URL) throws -> [Float] {
    let data = try Data(contentsOf: url)
    return data.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
}

func array(from url: URL, shape: [Int]) throws -> MLMultiArray {
    let values = try floats(from: url)
    let result = try MLMultiArray(shape: shape.map { NSNumber(value: $0) }, dataType: .float32)
    result.withUnsafeMutableBytes { bytes, _ in
        values.withUnsafeBytes { bytes.copyMemory(from: $0) }
    }
    return result
}

/// Return the PSNR in dB of values in a range of 2. Core ML may pad rows, so values are read by their strides.
func psnr(of video: MLMultiArray, against url: URL) throws -> Double {
    let expected = try floats(from: url)
    let shape = video.shape.map(\.intValue)
    var squares = 0.0
    video.withUnsafeBufferPointer(ofType: Float.self) { values in
        let strides = video.strides.map(\.intValue)
        var next = 0
        for channel in 0..<shape[1] {
            for frame in 0..<shape[2] {
                for row in 0..<shape[3] {
                    let start = channel * strides[1] + frame * strides[2] + row * strides[3]
                    for column in 0..<shape[4] {
                        let error = Double(values[start + column * strides[4]] - expected[next])
                        squares += error * error
                        next += 1
                    }
                }
            }
        }
    }
    guard squares.isFinite else { return 0 }  // JSON has no NaN
    return squares == 0 ? 200 : min(200, -10 * log10(squares / Double(expected.count) / 4))
}

func milliseconds(since began: DispatchTime) -> Double {
    Double(DispatchTime.now().uptimeNanoseconds - began.uptimeNanoseconds) / 1e6
}

/// Return a percentile, linear between the two nearest samples as in numpy.
func percentile(_ samples: [Double], _ share: Double) -> Double {
    let sorted = samples.sorted()
    let place = Double(sorted.count - 1) * share / 100
    let low = Int(place.rounded(.down))
    let high = Int(place.rounded(.up))
    return sorted[low] + (sorted[high] - sorted[low]) * (place - Double(low))
}

/// Return the memory that the system counts for this process, now and at its peak so far, in MB.
func footprint() -> (now: Double, peak: Double) {
    var info = task_vm_info_data_t()
    var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<integer_t>.size)
    let result = withUnsafeMutablePointer(to: &info) { pointer in
        pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
            task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
        }
    }
    guard result == KERN_SUCCESS else { return (0, 0) }
    return (Double(info.phys_footprint) / 1e6, Double(info.ledger_phys_footprint_peak) / 1e6)
}
