from axplain.conformance import conformance_suite

TestConformance = conformance_suite("axplain-blur-ig")
