from axplain.conformance import conformance_suite

TestRecipes = conformance_suite("axplain-recipes")
