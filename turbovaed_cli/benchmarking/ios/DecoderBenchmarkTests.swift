import TurboVAEDBench
import XCTest

final class DecoderBenchmarkTests: XCTestCase {
    /// All compute units, one row each; the video must be the student's. The last line printed is the JSON document.
    func testEveryComputeUnit() async throws {
        let wanted = try BenchmarkCase.load()
        var rows: [BenchmarkRow] = []
        for (name, units) in DecoderBenchmark.units {
            let row = try await DecoderBenchmark.run(name, units)
            XCTAssertGreaterThanOrEqual(row.psnrDb, wanted.leastPsnrDb, "\(name) does not give the student's video")
            print("\(name): first \(row.firstMs) ms, P50 \(row.p50Ms) ms, \(row.fps) frames per second, \(row.psnrDb) dB")
            rows.append(row)
        }
        let json = try BenchmarkDocument(of: wanted, rows: rows).json()
        let attachment = XCTAttachment(string: json)
        attachment.name = "bench.json"
        attachment.lifetime = .keepAlways
        add(attachment)
        print("turbovaed-bench-json \(json)")
    }
}
